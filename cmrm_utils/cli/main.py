"""The ``cmrm`` command, with all of its subcommands."""

import click

# Importing a file of commands adds them to the group.
from cmrm_utils.cli import (  # noqa: F401
    baking,
    data,
    judging,
    models,
    organisms,
    planning,
    publishing,
)
from cmrm_utils.cli.group import cli, with_parameters
from cmrm_utils.jobs.execute import run_jobs, stopping, work
from cmrm_utils.jobs.profiles import planned_jobs


@cli.command()
@click.argument("profile", default="default")
@with_parameters
@click.option("--only", metavar="NUMBERS", help="Run only these notebooks, as in 03,04.")
@click.option("--out", metavar="DIR", help="Run folder. [default: runs/PROFILE]")
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
    out: str | None,
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
