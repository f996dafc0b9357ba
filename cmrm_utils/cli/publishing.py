"""``cmrm refresh`` and ``cmrm publish``: the part of a run that the repository keeps."""

from pathlib import Path

import click

from cmrm_utils.cli.group import FOLDER, cli


@cli.command()
@click.option("--only", metavar="NUMBERS", help="Re-execute only these notebooks, as in 03,04.")
def refresh(only: str | None) -> None:
    """Re-execute the committed notebooks in place.

    They keep no timestamps and no paths. Without --only, runs/default and runs/research start
    empty. The metrics that the tests compare with are stored anew.
    """
    from cmrm_utils.jobs import publish

    publish.refresh(only)


@cli.command()
@click.argument("folder", type=FOLDER)
def publish(folder: Path) -> None:
    """Copy a run's results into the repository.

    A run of one model gives figures/ (of notebooks 01 to 05) and the README's table. A run of
    several models gives the stored tables of notebook 09, where rows of other models stay.
    """
    from cmrm_utils.jobs import publish

    click.echo(publish.publish(folder))
