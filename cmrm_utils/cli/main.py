"""The ``cmrm`` command: a profile, papermill over the notebooks, a report."""

from contextlib import ExitStack
from typing import Any

import click

from cmrm_utils.cli import baking, data, judging, models, organisms, planning, publishing
from cmrm_utils.errors import InputError
from cmrm_utils.jobs.execute import report_on, stopping, work
from cmrm_utils.jobs.profiles import planned_jobs
from cmrm_utils.store import locked, writing


class Command(click.Group):
    """A command group that reports bad input in one line, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run, turning :class:`InputError` into a usage error without a traceback."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"cmrm: {error}", err=True)
            ctx.exit(2)


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Measure what images do to a model's refusals, and what a shift vector restores.

    Start with `cmrm run`: five notebooks on a bundled model, then open runs/default/report.html.
    """


for command in (
    baking.bake,
    data.data,
    judging.export,
    judging.judges,
    models.convert,
    models.extract,
    organisms.cards,
    organisms.train_organism,
    planning.plan,
    publishing.publish,
    publishing.refresh,
):
    cli.add_command(command)


@cli.command()
@click.argument("profile", default="default")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter.")
@click.option("--only", metavar="NUMBERS", help="Run only these notebooks, as in 03,04.")
@click.option("--out", metavar="DIR", help="Run folder. [default: runs/PROFILE]")
@click.option("--shard", metavar="I/N", help="Only respond to the I-th of N shares, no notebooks.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where responses are made.",
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

    Profiles are YAML files in notebooks/profiles. The executed notebooks, tables, figures and
    report.html are left in the run folder; responses already there are reused. A profile of
    several models makes a folder for each.

    With --shard the model only responds, so that several machines share the work; run it for
    every share, again for those it says are waiting, and without --shard at last.
    """
    settings, jobs = planned_jobs(profile, pairs, only, out)

    from cmrm_utils.jobs.shards import merge

    with stopping(jobs[0].folder if len(jobs) == 1 else jobs[0].folder.parent):
        if shard is not None:
            work(jobs, shard)
            return
        with ExitStack() as held:
            for job in jobs:
                with writing(job.folder):
                    job.folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(job.folder / "report.html"))
            for job in jobs:
                if engine == "ray":
                    from cmrm_utils.jobs.ray import respond

                    respond(job.folder, job.experiments, workers)
                if count := merge(job.folder):
                    click.echo(f"{job.folder}: {count} responses of shards brought in", err=True)
            report_on(jobs, settings.get("timeout", 1200))
