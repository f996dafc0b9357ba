"""A run's trials shared out over processes or machines, and brought together again.

Each shard writes a part of the run of its own, so that none waits for another. A list that needs
the responses to an earlier one (the test split, at alphas chosen on the validation split) can be
made when all shards are through with that: run the shards once more.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cmrm_utils.engine.loops import respond
from cmrm_utils.engine.plan import distinct, in_order
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM
from cmrm_utils.store import (
    Response,
    Responses,
    hashed,
    locked,
    read_json,
    reading,
    write_json,
    writing,
)
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.registry import STUDIES
from cmrm_utils.trials import Trial

SHARED_PACK = 512
"""Largest pack, in trials, that goes to one worker: the same on machines of any batch size."""


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
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"a shard is written as 2/4, the second of four, not {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def part(self, folder: Path) -> Path:
        """Where its responses go, in the run of a folder."""
        return folder / "parts" / f"{self.number}-of-{self.count}.jsonl"

    def mark(self, folder: Path) -> Path:
        """The file that says that it ended (:func:`ended`)."""
        return self.part(folder).with_suffix(".json")


class Waiting(Exception):
    """A list cannot be made yet: other shards have still to respond to an earlier one."""


@dataclass(eq=False)
class Worker:
    """A shard's share of a run: the model and the data, without the notebooks.

    Attributes:
        nb: the model and the data. Its responses come from the files of all shards.
        shard: which share.
    """

    nb: Notebook
    shard: Shard
    _lists: dict[str, list[list[Trial]]] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)
    _shared: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self._shared = self.nb.shared
        self.nb.respond = self._made_by_all

    def lists(self, number: str, parameters: Mapping[str, Any]) -> Iterator[list[Trial]]:
        """A study's lists; each is made once, whatever the shard."""
        study = STUDIES[number]
        name = f"{study.__module__} {study.__name__} {sorted(parameters.items(), key=str)}"
        known = self._lists.setdefault(name, [])
        yield from list(known)
        if name not in self._whole:
            for trials in islice(study(self.nb, parameters), len(known), None):
                known.append(trials)
                yield trials
            self._whole.add(name)

    def _made_by_all(self, trials: Sequence[Trial]) -> list[Response]:
        """Responses that all shards have made.

        Raises:
            Waiting: some are missing.
        """
        known: dict[str, Response] = {}
        run = self.nb.run
        for path in (run.responses, *(shard.part(run.folder) for shard in _shards(run.folder))):
            known.update(self._kept(path).all)
        if missing := sum(trial.id not in known for trial in trials):
            raise Waiting(f"{missing} responses of other shards")
        return [known[trial.id] for trial in trials]

    def _kept(self, path: Path) -> Responses:
        return Responses(path, self._shared)

    def work(self, experiments: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Respond to this shard's share of every list that can be made.

        Args:
            experiments: numbers of notebooks, and their parameters.

        Returns:
            What is waiting for other shards, a line each; when there is none, the shard is done.
        """
        waiting: list[str] = []
        through: dict[str, str] = {}
        nb = self.nb
        merged = self._kept(nb.run.responses)
        part = self.shard.part(nb.run.folder)
        for number, parameters in experiments:
            try:
                for place, trials in enumerate(self.lists(number, parameters), start=1):
                    # Shared out before any is left out: what a run has differs from day to day.
                    own = shared_out(nb.vlm, trials, self.shard.number, self.shard.count)
                    respond(
                        nb.vlm,
                        [trial for trial in own if not merged.get(trial.id)],
                        max_new_tokens=nb.max_new_tokens,
                        out=part,
                        openers=nb.openers,
                        progress=True,
                    )
                    ids = sorted({trial.id for trial in trials})
                    through[f"{number}, list {place}"] = hashed([" ".join(ids)])
            except Waiting as reason:
                waiting.append(f"{number}: {reason}")
        count = len(self._kept(part).all)
        done = {"lists": through, "waiting": waiting, "responses": count}
        write_json(self.shard.mark(nb.run.folder), done)
        return waiting


def open_worker(folder: Path, parameters: Mapping[str, Any], shard: Shard) -> Worker:
    """A shard's worker on a run, from the parameters of its notebooks.

    Raises:
        InputError: no such model or data, or a run folder made with other ones.
    """
    shared = {name: parameters[name] for name in ("model", "data", "max_new_tokens", "settings")}
    name = f"shard {shard.number} of {shard.count}"
    return Worker(Notebook.open(name, out=str(folder), **shared), shard)


def _shards(folder: Path, suffix: str = ".jsonl") -> list[Shard]:
    """The shards that have a part in a run's folder; with ``.json`` those that have a mark."""
    paths = sorted((folder / "parts").glob(f"*{suffix}"))
    matches = [re.fullmatch(r"(\d+)-of-(\d+)", path.stem) for path in paths]
    return [Shard(int(each[1]), int(each[2])) for each in matches if each]


def ended(folder: Path) -> dict[Shard, dict[str, Any]]:
    """What each shard that ended says of itself.

    ``lists`` holds the lists that it finished, each with a digest of its trials. ``waiting`` says
    what it could not make yet. ``responses`` counts those in its part.

    Raises:
        InputError: a mark is damaged.
    """
    marks = {}
    for shard in _shards(folder, ".json"):
        marks[shard] = mark = read_json(path := shard.mark(folder))
        if {name: type(value) for name, value in mark.items()} != MARK:
            raise InputError(f"{path}: no mark of a shard that ended; delete it and run that again")
    return marks


MARK = {"lists": dict, "waiting": list, "responses": int}
"""What :func:`ended` tells of a shard."""


def check_counts(folder: Path, count: int | None = None) -> int | None:
    """Check that all parts and marks of a run belong to the same number of shards.

    Args:
        folder: of the run.
        count: the number that they should have, if it is known.

    Returns:
        The number of shards; None where the run has no parts.

    Raises:
        InputError: the numbers differ. All files stay as they are.
    """
    counts = {shard.count for shard in (*_shards(folder), *ended(folder))}
    if len(counts | {count or n for n in counts}) > 1:
        others = " and of ".join(map(str, sorted(counts)))
        now = f", now they are to be of {count}" if count else ""
        raise InputError(
            f"{folder}: parts of {others} shards{now}; go on with as many as before, or move "
            f"{folder / 'parts'} away, and its responses are made again"
        )
    return counts.pop() if counts else None


def check_lists(folder: Path) -> None:
    """Check that the shards that ended made the same lists.

    Raises:
        InputError: two shards made different lists at the same place.
    """
    known: dict[str, tuple[Shard, str]] = {}
    for shard, mark in ended(folder).items():
        for name, digest in mark["lists"].items():
            other, wanted = known.setdefault(name, (shard, digest))
            if digest != wanted:
                raise InputError(
                    f"{folder}: shards {other} and {shard} made other trials of {name}: run all "
                    "shards again with the same parameters, on machines and batch sizes whose "
                    "numbers are the same"
                )


def merge(folder: Path) -> int:
    """Move the responses of all shards, if there are any, into the run's own file.

    Args:
        folder: of the run.

    Returns:
        How many responses were added.

    Raises:
        InputError: a shard is missing, is still being written, or is behind the others; a part or
            a mark is damaged.
    """
    of = check_counts(folder)
    if of is None:
        return 0
    done = ended(folder)
    advice = (
        f"run what is missing (cmrm run ... --shard), or move {folder / 'parts'} away, and its "
        "responses are made again"
    )
    every = [Shard(number, of) for number in range(1, of + 1)]
    if missing := [str(shard) for shard in every if shard not in done]:
        raise InputError(f"{folder}: shard {', '.join(missing)} has not ended; {advice}")
    check_lists(folder)
    lists = {name for mark in done.values() for name in mark["lists"]}
    for shard, mark in done.items():
        if mark["waiting"] or lists - set(mark["lists"]):
            raise InputError(f"{folder}: shard {shard} has trials left; {advice}")
    with ExitStack() as held:
        for shard in _shards(folder):
            held.enter_context(locked(shard.part(folder)))
        parts = {shard: _part(shard.part(folder)) for shard in every}
        for shard, part in parts.items():
            wanted = done[shard]["responses"]
            if (count := len(part.all) if part else 0) < wanted:
                raise InputError(
                    f"{shard.part(folder)} has {count} of {wanted} responses; {advice}"
                )
        count = sum(_append(part, folder / "responses.jsonl") for part in parts.values() if part)
        with writing(folder / "parts"):
            shutil.rmtree(folder / "parts")
    return count


def shared_out(vlm: VLM, trials: Sequence[Trial], number: int, count: int) -> list[Trial]:
    """The trials of worker ``number`` (from 1) of ``count``: every ``count``-th pack.

    Trials with a shared beginning stay together, and every worker gets its part of long prompts.
    The division follows from the list and the model only, so that machines with other batch sizes
    or memory agree on it.
    """
    planned = in_order(vlm, distinct(trials)[1])
    pack = max(1, min(SHARED_PACK, len(planned) // (4 * count)))
    packs = [planned[start : start + pack] for start in range(0, len(planned), pack)]
    return [each.trial for own in packs[number - 1 :: count] for each in own]


def read_header(path: Path) -> dict[str, Any] | None:
    """The first line of a file of :class:`Records`; None if it has no whole line.

    Raises:
        InputError: the line is no JSON object, or the file cannot be read.
    """
    with reading(path), path.open("rb") as stream:
        line = stream.readline()
        header = json.loads(line) if line.endswith(b"\n") else None
        if header is not None and not isinstance(header, dict):
            raise ValueError("its first line is no JSON object")
        return header


def _part(path: Path) -> Responses | None:
    """A part's responses; None where there are none yet."""
    shared = read_header(path) if path.exists() else None
    return Responses(path, shared) if shared else None


def _append(part: Responses, whole: Path) -> int:
    """Add a part's responses; how many were new."""
    merged = Responses(whole, part.shared)
    before = len(merged.all)
    with merged.appending() as sink:
        sink.add(part.all.items())
    return len(merged.all) - before
