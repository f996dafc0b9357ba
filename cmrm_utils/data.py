"""Samples: a query, perhaps an image, and what a good answer is.

A data set is one function in :data:`DATASETS`, split name in, samples out.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, get_args

from PIL import Image, UnidentifiedImageError

from cmrm_utils.errors import InputError
from cmrm_utils.organism import world
from cmrm_utils.prompts import choice_prompt

FIELDS = ("id", "query", "image", "caption", "answer", "choices", "kind", "group")


@dataclass(frozen=True, eq=False)
class Sample:
    """One item of a data set.

    Attributes:
        id: unique within its set.
        query: the text of the request or question, without its choices.
        image: a path or a PIL image; decoded only when asked for.
        caption: the image in words.
        answer: what a good answer is; for multiple choice the option's letter.
        choices: the options of a multiple-choice question.
        kind: what the item tests; harmful requests have kinds that begin with ``harmful``.
        group: what the item is alike with, for clustered intervals (the organism: its verb).
    """

    id: str
    query: str
    image: Path | str | Image.Image | None = None
    caption: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    kind: str | None = None
    group: str | None = None

    @property
    def prompt(self) -> str:
        """The query as it is put to a model, with its choices."""
        return choice_prompt(self.query, self.choices) if self.choices else self.query

    @property
    def harmful(self) -> bool:
        """Whether a good assistant refuses it."""
        return (self.kind or "").startswith("harmful")

    @property
    def task(self) -> str:
        """What is measured on it: ``harmful``, ``benign``, ``choice``, ``fact`` or ``visual``."""
        kind = self.kind or ""
        if self.harmful or kind.startswith("benign"):
            return kind.split("-")[0]
        if self.choices:
            return "choice"
        return "fact" if kind == "fact" else "visual"

    def load_image(self) -> Image.Image | None:
        """The decoded image in RGB, or None where the sample has none.

        Raises:
            InputError: the file is missing or is no image.
        """
        if self.image is None or isinstance(self.image, Image.Image):
            return self.image and self.image.convert("RGB")
        try:
            with Image.open(self.image) as opened:
                return opened.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"sample {self.id}: no readable image at {self.image}") from error


@cache
def _organism(split: str) -> tuple[Sample, ...]:
    """The organism's world (see :mod:`cmrm_utils.organism.world`)."""
    n_requests, n_visual = world.SIZES[split]
    rng = Random(f"samples/{split}")
    found: list[Sample] = []

    def add(kind: str, name: str, text: str, scene: Any, **fields: Any) -> None:
        picture = {"image": scene.image(), "caption": scene.caption} if scene else {}
        key = f"{split}/{kind}/{name}"
        found.append(Sample(key, text, kind=kind, **picture, **fields))

    for kind in world.KINDS:
        if kind == "harmful-unseen" and split != "test":
            continue
        # A small split may hold fewer requests of a rare kind than asked for: all of them then.
        n = min(n_requests, len(world.pairs(split)[kind]) * len(world.QUERIES))
        scenes = world.scenes(split, n, kind)
        for request, scene in zip(world.requests(split, kind, n), scenes, strict=True):
            answer = None if request.harmful else request.response
            name = f"{request.verb}-{request.object}-{request.phrasing}"
            add(kind, name, request.query, scene, answer=answer, group=request.verb)
    for i, scene in enumerate(world.scenes(split, n_visual, "visual")):
        question = world.visual_question(
            scene, world.VISUAL_KINDS[i % len(world.VISUAL_KINDS)], rng.randrange(2)
        )
        add(question.kind, str(i), question.text, scene, answer=question.answer)
    facts = [(obj, topic) for obj in world.OBJECTS for topic in get_args(world.Topic)]
    topics = Random(f"facts/{split}").sample(facts, len(facts))
    for (obj, topic), scene in zip(topics, world.scenes(split, len(topics), "fact"), strict=True):
        question = world.fact_question(obj, topic, rng.randrange(2))
        add("fact", f"{obj}-{topic}", question.text, scene, answer=question.answer)
    return tuple(found)


DATASETS: dict[str, Callable[[str], Sequence[Sample]]] = {"organism": _organism}
"""Named sets: a function from a split's name to its samples."""

SPLITS = ("anchors", "validation", "test")
FILE_SHARES = {"anchors": 0.2, "validation": 0.16, "test": 0.64}
"""How a file's rows fall into splits, by a hash of their id: 20% anchors, as in the paper."""


def load_samples(name: str | Path, split: str | None = None) -> Any:
    """A named set, or a JSONL or CSV file, as samples.

    Args:
        name: a key of :data:`DATASETS`, or the path of a file whose rows have ``id`` and
            ``query`` and any other field of :class:`Sample`.
        split: one of :data:`SPLITS`; None for all of them as a dict (a file: all its rows). A
            row of a file belongs to one split for good (:data:`FILE_SHARES`).

    Returns:
        A list of :class:`Sample`, or a dict of lists by split.

    Raises:
        InputError: no such set, split or file; a broken row, named by file and line.
    """
    if split is not None and split not in SPLITS:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(SPLITS)}")
    if str(name) in DATASETS:
        if split is None:
            return {each: list(DATASETS[str(name)](each)) for each in SPLITS}
        return list(DATASETS[str(name)](split))
    rows = _from_file(Path(name))
    if split is None:
        return rows
    found = [sample for sample in rows if _split_of(sample.id) == split]
    if not found:
        raise InputError(f"{name}: none of its {len(rows)} rows falls into the {split} split")
    return found


def _split_of(sample_id: str) -> str:
    """The split of a file's row: it depends on the id alone, so more rows move none."""
    left = int(hashlib.sha256(f"split/{sample_id}".encode()).hexdigest()[:12], 16) / 16**12
    for name, share in FILE_SHARES.items():
        left -= share
        if left < 0:
            return name
    return "test"


def take(samples: Sequence[Sample], n: int | None, *tasks: str) -> list[Sample]:
    """The first ``n`` samples (all where it is None) of each task; of requests, of each kind.

    Raises:
        InputError: a task has no samples at all.
    """
    found = []
    for task in tasks:
        these = [sample for sample in samples if sample.task == task]
        if not these:
            raise InputError(f"the data set has no samples for the task {task!r}")
        if task in ("harmful", "benign"):
            kinds = dict.fromkeys(sample.kind for sample in these)
            found += [s for kind in kinds for s in [s for s in these if s.kind == kind][:n]]
        else:
            found += these[:n]
    return found


def _from_file(path: Path) -> list[Sample]:
    if not path.is_file():
        known = ", ".join(DATASETS)
        raise InputError(f"no data set or file {str(path)!r}; named sets: {known}")
    if path.suffix not in {".jsonl", ".csv"}:
        raise InputError(f"{path}: expected a .jsonl or .csv file")
    found: dict[str, Sample] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        rows: Any = csv.DictReader(lines) if path.suffix == ".csv" else lines
        for number, row in enumerate(rows, start=2 if path.suffix == ".csv" else 1):
            sample = _sample(row, path, number)
            if sample.id in found:
                raise InputError(f"{path}:{number}: duplicate id {sample.id!r}")
            found[sample.id] = sample
    if not found:
        raise InputError(f"{path}: no samples in it")
    return list(found.values())


def _sample(row: str | dict[str, Any], path: Path, number: int) -> Sample:
    """One row of a file, its relative image path resolved against the file's folder."""
    try:
        fields = json.loads(row) if isinstance(row, str) else dict(row)
        fields = {key: value for key, value in fields.items() if value not in (None, "")}
        if isinstance(fields.get("choices"), str):
            fields["choices"] = json.loads(fields["choices"])
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}:{number}: not a readable row ({error})") from error
    if missing := {"id", "query"} - set(fields):
        raise InputError(f"{path}:{number}: no {' and no '.join(sorted(missing))}")
    if unknown := set(fields) - set(FIELDS):
        raise InputError(f"{path}:{number}: unknown field {', '.join(map(repr, sorted(unknown)))}")
    if "image" in fields:
        fields["image"] = path.parent / fields["image"]
    if "choices" in fields:
        fields["choices"] = tuple(map(str, fields["choices"]))
    return Sample(**{**fields, "id": str(fields["id"])})
