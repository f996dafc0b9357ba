"""The ``cmrm`` command: a profile, papermill over the notebooks, a report."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from cmrm_utils.commands import baking, data, judging, models, organisms, planning, publishing
from cmrm_utils.errors import InputError
from cmrm_utils.profiles import (
    KERNEL_ARGUMENTS,
    Job,
    numbered_notebooks,
    planned_jobs,
    quiet_kernels,
)
from cmrm_utils.store import locked, read_json, read_table, writing

# torch, transformers, papermill and pandas are imported where they are needed, so that help and
# complaints about bad input come at once.


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

    from cmrm_utils.shards import merge

    with _stopping(jobs[0].folder if len(jobs) == 1 else jobs[0].folder.parent):
        if shard is not None:
            _work(jobs, shard)
            return
        with ExitStack() as held:
            for job in jobs:
                with writing(job.folder):
                    job.folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(job.folder / "report.html"))
            for job in jobs:
                if engine == "ray":
                    from cmrm_utils.ray_engine import respond

                    respond(job.folder, job.experiments, workers)
                if count := merge(job.folder):
                    click.echo(f"{job.folder}: {count} responses of shards brought in", err=True)
            _report_on(jobs, settings.get("timeout", 1200))


def _report_on(jobs: Sequence[Job], timeout: int) -> None:
    """Every notebook of every run, and the runs' reports."""
    plan = [(path, job.folder, share) for job in jobs for path, share in job.notebooks.items()]
    with tqdm(plan, unit="notebook", file=sys.stderr) as bar:
        for path, folder, share in bar:
            bar.set_description(path.stem)
            _execute(path, folder, share, timeout)
    for job in jobs:
        report(job.folder, [job.folder / path.name for path in numbered_notebooks(None)])
        click.echo(f"report: {job.folder / 'report.html'}")


@contextmanager
def _stopping(folder: Path) -> Iterator[None]:
    """Ctrl-C, or being told to end, ends at once, kernel and all, with a line on how to go on.

    Only the first counts, so that an impatient second leaves no kernel behind. Where they are
    ignored (a job in the background), they stay ignored.
    """
    asked = (signal.SIGINT, signal.SIGTERM)
    heeded = [each for each in asked if signal.getsignal(each) is not signal.SIG_IGN]

    def stop(*_: Any) -> None:
        for each in heeded:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in heeded}
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            f"cmrm: stopped; what is done is kept in {folder}, the same command goes on there",
            err=True,
        )
        sys.exit(130)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _work(jobs: Sequence[Job], text: str) -> None:
    """Respond to one shard of every run."""
    from cmrm_utils.shards import Shard, check_counts, check_lists, open_worker

    shard = Shard.parse(text)
    for job in jobs:
        check_counts(job.folder, shard.count)
        shard.mark(job.folder).unlink(missing_ok=True)  # it has not ended until it ends again
        experiments = job.experiments
        waiting = open_worker(job.folder, experiments[0][1], shard).work(experiments)
        if waiting:
            check_lists(job.folder)  # what differs would be waited for in vain
        state = f"waiting for {'; '.join(waiting)}; run it again after them" if waiting else "done"
        click.echo(f"{job.folder}, shard {text}: {state}")


def _execute(path: Path, folder: Path, parameters: dict[str, Any], timeout: int) -> None:
    """One notebook through papermill; its manifest proves that it ran to the end."""
    import papermill

    from cmrm_utils.kernels import OwnKernel, fail, telling

    output = folder / path.name
    manifest = folder / "manifests" / f"{path.stem}.json"
    with telling(path, f"see {output}", timeout), quiet_kernels(), writing(output):
        manifest.unlink(missing_ok=True)
        papermill.execute_notebook(
            str(path),
            str(output),
            parameters=parameters,
            kernel_name="python3",
            kernel_manager_class=OwnKernel,
            cwd=str(path.parent),
            execution_timeout=timeout,
            progress_bar=False,
            extra_arguments=KERNEL_ARGUMENTS,
            shutdown_kernel="immediate",  # it has written all, or is to stop now
        )
    if not manifest.is_file():
        fail(f"{path.name} ended without its last cell; see {output}")


def report(folder: Path, notebooks: Sequence[Path]) -> None:
    """Write ``report.html`` of those notebooks that ran, a headline table first if there is one."""
    from cmrm_utils.judges.labels import load_responses
    from cmrm_utils.report import write_report

    headline, reading = None, ""
    said = folder / "metrics" / "05_utility_evaluation.json"
    if (path := folder / "tables" / "headline.parquet").is_file() and said.is_file():
        headline, reading = read_table(path), read_json(said)["reading"]
    responses = None
    if (folder / "tables" / "04_responses.parquet").is_file():
        responses = load_responses(folder)
    write_report(
        folder / "report.html",
        "What images do to refusals, and what a shift vector restores",
        [path for path in notebooks if path.is_file()],
        headline=headline,
        reading=reading,
        figure=folder / "figures" / "05_pareto.png",
        responses=responses,
    )
