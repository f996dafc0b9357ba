"""Ray as the engine: workers on a machine or a cluster, each with a model, on one shared folder."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cmrm_utils.errors import InputError
from cmrm_utils.jobs.shards import Shard, check_counts, check_lists, ended, open_worker
from cmrm_utils.store import writing

SHARES = 4
"""Shards for each worker: the quicker take more, and a killed one gives little back."""


PATIENCE = 600.0
"""Seconds that a worker waits for others' last shards before it looks at what there is."""


Experiments = Sequence[tuple[str, Mapping[str, Any]]]


class Respond:
    """What a worker does: shards, one after the other, with one model."""

    def __init__(self, folder: str, experiments: Experiments, count: int, patience: float) -> None:
        self._experiments, self._count, self._patience = experiments, count, patience
        self._worker = open_worker(Path(folder), experiments[0][1], Shard(1, count))

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[str]]:
        """Respond to shards; what each is waiting for."""
        waiting = []
        for number, again in zip(rows["number"], rows["again"], strict=True):
            if again:
                self._wait()
            self._worker.shard = Shard(int(number), self._count)
            waiting.append("; ".join(self._worker.work(self._experiments)))
        return {"waiting": waiting}

    def _wait(self) -> None:
        """Until the last shards of the first round have ended, on other workers."""
        end = time.monotonic() + self._patience
        while len(ended(self._worker.nb.run.folder)) < self._count and time.monotonic() < end:
            time.sleep(0.2)


def respond(folder: Path, experiments: Experiments, workers: int) -> None:
    """Respond to all trials of a run's notebooks. :func:`shards.merge` then takes the parts.

    A worker that dies is replaced, and its shard goes on where the part's file ends.

    Args:
        folder: of the run, where every worker can reach it.
        experiments: numbers of notebooks, and their parameters.
        workers: how many; each takes a GPU where the cluster has any.

    Raises:
        InputError: Ray is not installed, or there are no workers; the folder has parts of another
            number of shards; the shards wait for something that none of them makes.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray needs Ray: pip install '.[ray]'") from error
    if workers < 1:
        raise InputError(f"--workers must be 1 or more, not {workers}")
    count = SHARES * workers
    patience = PATIENCE if workers > 1 else 0.0  # alone it would wait for itself
    check_counts(folder, count)
    for number in range(1, count + 1):  # of an earlier run: this one's shards end anew
        with writing(folder / "parts"):
            Shard(number, count).mark(folder).unlink(missing_ok=True)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # Twice each: the test split's trials can be made when the validation split's are through.
    rounds = [{"number": n, "again": x} for x in (False, True) for n in range(1, count + 1)]
    waiting, before = True, None
    with tqdm(desc=f"{count} shards on {workers} workers, twice", unit="shard") as bar:
        while waiting:
            shards = ray.data.from_items(rounds, override_num_blocks=len(rounds))
            done = shards.map_batches(
                Respond,
                fn_constructor_args=(str(folder), experiments, count, patience),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
            )
            for _ in done.iter_rows():
                bar.update()
            marks = ended(folder)
            check_lists(folder)
            waiting = any(mark["waiting"] for mark in marks.values())
            if waiting and marks == before:
                reason = next(mark["waiting"][0] for mark in marks.values() if mark["waiting"])
                raise InputError(
                    f"{folder}: shards wait for what none of them makes ({reason}): have all of "
                    "Ray's workers the same model files, data and kind of processor?"
                )
            before = marks
    ray.shutdown()
