"""Notebooks through papermill, and the run's report."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from cmrm_utils.jobs.profiles import KERNEL_ARGUMENTS, Job, numbered_notebooks, quiet_kernels
from cmrm_utils.store import read_json, read_table, writing


def report_on(jobs: Sequence[Job], timeout: int) -> None:
    """Every notebook of every run, and the runs' reports."""
    plan = [(path, job.folder, share) for job in jobs for path, share in job.notebooks.items()]
    with tqdm(plan, unit="notebook", file=sys.stderr) as bar:
        for path, folder, share in bar:
            bar.set_description(path.stem)
            execute(path, folder, share, timeout)
    for job in jobs:
        report(job.folder, [job.folder / path.name for path in numbered_notebooks(None)])
        click.echo(f"report: {job.folder / 'report.html'}")


@contextmanager
def stopping(folder: Path) -> Iterator[None]:
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


def work(jobs: Sequence[Job], text: str) -> None:
    """Respond to one shard of every run."""
    from cmrm_utils.jobs.shards import Shard, check_counts, check_lists, open_worker

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


def execute(path: Path, folder: Path, parameters: dict[str, Any], timeout: int) -> None:
    """One notebook through papermill; its manifest proves that it ran to the end."""
    import papermill

    from cmrm_utils.jobs.kernels import OwnKernel, fail, telling

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
    from cmrm_utils.jobs.report import write_report
    from cmrm_utils.judges.labels import load_responses

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
