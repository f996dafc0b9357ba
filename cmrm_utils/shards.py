"""A run's trials shared out over processes or machines, and brought together again.

Each shard writes a part of the run of its own, so that none waits for another. A list that needs
the responses to an earlier one (the test split, at alphas chosen on the validation split) can be
made when all shards are through with that: run the shards once more.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from cmrm_utils.engine import generate, shared_out
from cmrm_utils.errors import InputError
from cmrm_utils.experiments import EXPERIMENTS
from cmrm_utils.judges import judge
from cmrm_utils.notebook import Notebook
from cmrm_utils.store import Response, Responses, Run, write_json
from cmrm_utils.trials import Trial, table


@dataclass(frozen=True)
class Shard:
    """One of several shares of a run.

    Attributes:
        number: counted from 1.
        count: how many there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``2/4``.

        Raises:
            InputError: it is not of that form, or there is no such shard.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"a shard is written as 2/4, the second of four, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def part(self, run: Run) -> Path:
        """Where its responses go."""
        return run.folder / "parts" / f"{self.number}-of-{self.count}.jsonl"


class Waiting(Exception):
    """A list cannot be made yet: other shards have still to respond to an earlier one."""


@dataclass(eq=False)
class Worker(Notebook):
    """A notebook's model, data and run folder, without the notebook; it responds to a shard."""

    shard: Shard = field(default=Shard(1, 1))
    _made: dict[str, list[list[Trial]]] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)

    def _lists(self, number: str, parameters: Mapping[str, Any]) -> Iterator[list[Trial]]:
        """An experiment's lists; each is made once, whatever the shard."""
        experiment = EXPERIMENTS[number]
        name = f"{experiment.__name__} {sorted(parameters.items(), key=str)}"
        made = self._made.setdefault(name, [])
        yield from list(made)
        if name not in self._whole:
            for trials in islice(experiment(self, parameters), len(made), None):
                made.append(trials)
                yield trials
            self._whole.add(name)

    def ask(self, trials: Sequence[Trial]) -> pd.DataFrame:
        """Responses that all shards have made.

        Raises:
            Waiting: some are missing.
        """
        known = self._known()
        found = [known.get(trial.id) for trial in trials]
        if missing := sum(response is None for response in found):
            raise Waiting(f"{missing} responses of other shards")
        return judge(table(trials, [response.text for response in found if response]))

    def _known(self) -> dict[str, Response]:
        known: dict[str, Response] = {}
        for path in (self.run.responses, *_parts(self.run.folder)):
            known.update(self._responses(path).all)
        return known

    def work(self, experiments: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Respond to this shard's share of every list that can be made.

        Args:
            experiments: numbers of notebooks, and their parameters.

        Returns:
            What is waiting for other shards, a line each; when there is none, the shard is done.
        """
        waiting, through = [], []
        merged = self._responses(self.run.responses)
        for number, parameters in experiments:
            try:
                for trials in self._lists(number, parameters):
                    left = [trial for trial in trials if not merged.get(trial.id)]
                    generate(
                        self.vlm,
                        shared_out(self.vlm, left, self.shard.number, self.shard.count),
                        max_new_tokens=self.max_new_tokens,
                        out=self.shard.part(self.run),
                        progress=True,
                    )
                    through.append(_digest(left))
            except Waiting as reason:
                waiting.append(f"{number}: {reason}")
        done = {"lists": sorted(set(through)), "waiting": waiting}
        write_json(self.shard.part(self.run).with_suffix(".json"), done)
        return waiting


def open_worker(folder: Path, parameters: Mapping[str, Any], shard: Shard) -> Worker:
    """A shard's worker on a run, from the parameters of its notebooks.

    Raises:
        InputError: no such model or data, or a run folder made with other ones.
    """
    kept = ("model", "data", "max_new_tokens", "settings")
    shared = {name: parameters[name] for name in kept}
    name = f"shard {shard.number} of {shard.count}"
    worker = Worker.open(name, out=str(folder), **shared)
    worker.shard = shard
    return worker


def _digest(trials: Iterable[Trial]) -> str:
    return sha256(" ".join(sorted({trial.id for trial in trials})).encode()).hexdigest()[:16]


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "parts").glob("*-of-*.jsonl"))


def ended(folder: Path) -> dict[str, Any]:
    """What each shard that came to an end says of itself, by its part's name.

    ``lists`` names what it is through with, ``waiting`` what it could not make yet.
    """
    marks = sorted((folder / "parts").glob("*-of-*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in marks}


def merge(folder: Path) -> int:
    """Bring the parts of all shards into a run's responses, if there are any, and remove them.

    Args:
        folder: of the run.

    Returns:
        How many responses were brought in.

    Raises:
        InputError: a shard is missing, or not through with what the others are through with.
    """
    parts = _parts(folder)
    done = ended(folder)
    names = {path.stem for path in parts} | set(done)
    if not names:
        return 0
    counts = {name.split("-of-")[1] for name in names}
    advice = f"run what is missing (cmrm run ... --shard), or delete {folder / 'parts'}"
    if len(counts) > 1:
        raise InputError(f"{folder}: parts of {' and of '.join(sorted(counts))} shards; {advice}")
    of = counts.pop()
    every = {f"{number}-of-{of}" for number in range(1, int(of) + 1)}
    if missing := sorted(every - set(done)):
        named = ", ".join(name.replace("-of-", "/") for name in missing)
        raise InputError(f"{folder}: shard {named} has not ended; {advice}")
    lists = {one for mark in done.values() for one in mark["lists"]}
    for name, mark in done.items():
        if mark["waiting"] or lists - set(mark["lists"]):
            raise InputError(
                f"{folder}: shard {name.replace('-of-', '/')} has trials left; {advice}"
            )
    count = sum(_append(path, folder / "responses.jsonl") for path in parts)
    shutil.rmtree(folder / "parts")
    return count


def _append(part: Path, whole: Path) -> int:
    """Add a part's responses; how many were new."""
    with part.open(encoding="utf-8") as stream:
        shared = json.loads(stream.readline())
    merged = Responses(whole, shared)
    before = len(merged.all)
    with merged.appending() as sink:
        sink.add(Responses(part, shared).all.items())
    return len(merged.all) - before
