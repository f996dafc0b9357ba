"""The ``cmrm`` command: runs, what they cost, and what the repository keeps of them."""

from pathlib import Path

import click

# Importing a file of commands adds them to the group.
from cmrm_utils.cli import data, judging, models  # noqa: F401
from cmrm_utils.cli.group import FOLDER, NEW_FOLDER, cli
from cmrm_utils.jobs.execute import run_jobs, stopping, work
from cmrm_utils.jobs.profiles import planned_jobs

with_parameters = click.option(
    "-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter."
)


@cli.command()
@click.argument("profile", default="default")
@with_parameters
@click.option("--only", metavar="NUMBERS", help="Run only these notebooks, as in 03,04.")
@click.option("--out", type=NEW_FOLDER, metavar="DIR", help="Run folder. [default: runs/PROFILE]")
@click.option("--shard", metavar="I/N", help="Only respond to the I-th of N shards, no notebooks.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the model responds.",
)
@click.option("--workers", default=2, show_default=True, help="Of --engine ray; each has a model.")
def run(
    profile: str,
    pairs: tuple[tuple[str, str], ...],
    only: str | None,
    out: Path | None,
    shard: str | None,
    engine: str,
    workers: int,
) -> None:
    """Run the notebooks with a PROFILE and write a report.

    PROFILE is the name of a file in notebooks/profiles, or the path of a .yaml file. Executed
    notebooks, tables, figures and report.html go into the run folder; responses already there are
    reused. A profile of several models makes one folder for each.

    With --shard the model only responds, so that several machines can share the work. Run every
    shard, then again those that say they are waiting, and last the same command without --shard.
    """
    settings, jobs = planned_jobs(profile, pairs, only, out)
    with stopping(jobs[0].folder if len(jobs) == 1 else jobs[0].folder.parent):
        if shard is None:
            ray_workers = workers if engine == "ray" else None
            run_jobs(jobs, timeout=settings.get("timeout", 1200), ray_workers=ray_workers)
        else:
            work(jobs, shard)


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


@cli.command()
@click.option("--only", metavar="NUMBERS", help="Re-execute only these notebooks, as in 03,04.")
def refresh(only: str | None) -> None:
    """Re-execute the committed notebooks in place.

    They keep no timestamps and no paths. Without --only, runs/default starts empty. The metrics
    that the tests compare with are stored anew.
    """
    from cmrm_utils.jobs import publish

    publish.refresh(only)


@cli.command()
@click.argument("folder", type=FOLDER)
def publish(folder: Path) -> None:
    """Copy a run's results into the repository.

    A run of one model gives figures/ (of notebooks 01 to 05), or in the invented world the table of
    docs/invented-world.md. A run of several models gives the stored tables of notebooks 10 and
    11, where rows of other models stay.
    """
    from cmrm_utils.jobs import publish

    click.echo(publish.publish(folder))
