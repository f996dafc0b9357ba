"""``cmrm plan``: what a profile will cost, before it is run."""

import click

from cmrm_utils.cli.group import cli, with_parameters
from cmrm_utils.jobs.profiles import planned_jobs


@cli.command()
@click.argument("profile", default="default")
@with_parameters
@click.option("--only", metavar="NUMBERS", help="Plan only these notebooks, as in 03,04.")
@click.option(
    "--probe", default=64, show_default=True, help="Trials of each list to time; 0: none."
)
def plan(profile: str, pairs: tuple[tuple[str, str], ...], only: str | None, probe: int) -> None:
    """Count a PROFILE's trials and tokens, and estimate the hours on this machine.

    The model is loaded and shift vectors are extracted, as in a run. A probe times a few trials of
    each list. Hours are those of one process; shards divide them.
    """
    from cmrm_utils.jobs.plan import plan as planned

    _, jobs = planned_jobs(profile, pairs, only, None)
    for job in jobs:
        rows = planned(job.experiments, probe=probe)
        click.echo(rows.to_string(index=False, float_format="{:.3g}".format))
        parameters = next(iter(job.notebooks.values()))
        total = f"{parameters.get('model', 'organism')}: {rows['trials'].sum():,} trials"
        if probe:
            total += f", {rows['hours'].sum():.2g} hours on this machine"
        click.echo(total)
