"""Execution of jobs: notebooks through papermill, a shard's responses, the run's report."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import pandas as pd
from tqdm import tqdm

from cmrm_utils.jobs.profiles import Job, numbered_notebooks
from cmrm_utils.paths import STORED
from cmrm_utils.results.text import without_counts
from cmrm_utils.store import locked, read_csv, read_json, read_table, writing


def run_jobs(jobs: Sequence[Job], *, timeout: int, ray_workers: int | None = None) -> None:
    """Run every notebook of every job, then write the reports.

    Responses of finished shards join the run first.

    Args:
        jobs: of :func:`~cmrm_utils.jobs.profiles.planned_jobs`.
        timeout: seconds that a cell may take.
        ray_workers: how many Ray workers respond before the notebooks run; None for no Ray.

    Raises:
        InputError: another process runs one of the jobs, a shard is missing or damaged, or a cell
            raised one.
        SystemExit: a notebook did not reach its end.
    """
    from cmrm_utils.jobs.shards import merge

    with ExitStack() as held:
        for job in jobs:
            with writing(job.folder):
                job.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(job.folder / "report.html"))
        for job in jobs:
            if ray_workers is not None:
                from cmrm_utils.jobs.ray import respond

                respond(job.folder, job.experiments, ray_workers)
            if count := merge(job.folder):
                click.echo(f"{job.folder}: added {count} responses of shards", err=True)
        every = [(job, path) for job in jobs for path in job.notebooks]
        with tqdm(every, unit="notebook", file=sys.stderr) as bar:
            for job, path in bar:
                bar.set_description(path.stem)
                execute(path, job.folder, job.notebooks[path], timeout)
        for job in jobs:
            report(job.folder, [job.folder / path.name for path in numbered_notebooks(None)])
            click.echo(f"report: {job.folder / 'report.html'}")


@contextmanager
def stopping(folder: Path) -> Iterator[None]:
    """Exit at once with code 130 on Ctrl-C or SIGTERM, with one line on how to continue.

    Kernels are stopped too. Only the first signal counts, so that a second one leaves no kernel
    behind. A signal that is ignored (in a background job) stays ignored.

    Args:
        folder: where the results so far are, for the message.

    Raises:
        SystemExit: a signal came.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    heeded = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
    told: list[int] = []

    def stop(number: int, _: Any) -> None:
        told.append(number)
        for each in heeded:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in heeded}
    try:
        yield
    except BaseException as error:  # what is cut off may raise anything, such as a RuntimeError
        if not told and not isinstance(error, KeyboardInterrupt):
            raise
        click.echo(
            f"cmrm: stopped; finished work is kept in {folder}, run the same command to continue",
            err=True,
        )
        sys.exit(130)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def work(jobs: Sequence[Job], text: str) -> None:
    """Respond to one shard of every job.

    Args:
        jobs: of :func:`~cmrm_utils.jobs.profiles.planned_jobs`.
        text: the shard, as in ``2/4``.

    Raises:
        InputError: no such shard, or a run with another number of shards or other trials.
    """
    from cmrm_utils.jobs.shards import Shard, check_counts, check_lists, open_worker

    shard = Shard.parse(text)
    for job in jobs:
        check_counts(job.folder, shard.count)
        shard.mark(job.folder).unlink(missing_ok=True)  # an old mark must not count for this run
        experiments = job.experiments
        waiting = open_worker(job.folder, experiments[0][1], shard).work(experiments)
        if waiting:
            check_lists(job.folder)  # shards with other trials would wait in vain
        state = f"waiting for {'; '.join(waiting)}; run it again after them" if waiting else "done"
        click.echo(f"{job.folder}, shard {text}: {state}")


def execute(path: Path, folder: Path, parameters: dict[str, Any], timeout: int) -> None:
    """Run one notebook through papermill; its manifest proves that it reached its last cell.

    Args:
        path: of the notebook.
        folder: the run folder, which the executed copy goes into.
        parameters: of the notebook.
        timeout: seconds that a cell may take.

    Raises:
        InputError: a cell raised one, or the folder cannot be written to.
        SystemExit: the notebook did not reach its end.
    """
    import papermill

    from cmrm_utils.jobs.kernels import OwnKernel, fail, telling

    output = folder / path.name
    manifest = folder / "manifests" / f"{path.stem}.json"
    with telling(path, f"see {output}", timeout), writing(output):
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
            shutdown_kernel="immediate",  # all results are on disk already
        )
    if not manifest.is_file():
        fail(f"{path.name} ended without its last cell; see {output}")


def report(folder: Path, notebooks: Sequence[Path]) -> None:
    """Write ``report.html`` of a run.

    Args:
        folder: of the run.
        notebooks: executed notebooks; those that are not there are left out.

    Raises:
        InputError: a notebook or a table is damaged.
    """
    from cmrm_utils.jobs.report import write_report
    from cmrm_utils.judges.labels import load_responses
    from cmrm_utils.studies.evaluation import outcome_words

    responses = None
    if (folder / "tables" / "04_responses.parquet").is_file():
        responses = load_responses(folder)
        responses["outcome"] = responses["outcome"].replace(outcome_words(responses))
    headline, reading = None, ""
    utility = folder / "metrics" / "05_utility_evaluation.json"
    if (path := folder / "tables" / "headline.parquet").is_file() and utility.is_file():
        headline, reading = without_counts(read_table(path)), read_json(utility)["reading"]
    swept = folder / "tables" / "04_curves.parquet"
    write_report(
        folder / "report.html",
        "What images do to refusals, and what a shift vector restores",
        [path for path in notebooks if path.is_file()],
        headline=headline,
        reading=reading,
        figure=folder / "figures" / "05_pareto.png",
        responses=responses,
        curves=read_table(swept) if swept.is_file() else None,
        excerpts=_excerpts(folder),
    )


def _excerpts(folder: Path) -> pd.DataFrame | None:
    """How the repository's example is answered by a run's model; None where nothing is kept of it.

    It is what notebook 00 leaves, stored by ``cmrm refresh``.
    """
    run = folder / "run.json"
    known = read_csv(STORED / "excerpts.csv")
    rows = known[known["model"] == read_json(run)["model"]] if run.is_file() else known[:0]
    return None if rows.empty else rows
