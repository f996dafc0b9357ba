"""Data by name: the organism's world, the public sets, anyone's own file, and unions of them."""

import csv
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, get_args

from cmrm_utils.errors import InputError
from cmrm_utils.organism import world
from cmrm_utils.sample import SHARES, SPLITS, Sample, split_of
from cmrm_utils.sets import SETS, data_home, find_set, load_set

__all__ = ["DATASETS", "SHARES", "SPLITS", "Sample", "load_samples", "located", "parts", "take"]

FIELDS = tuple(Sample.__dataclass_fields__)

WORLD = ("organism", "organism-extended")
"""The sets of the organism's world: what each organism learns, and what the extended one adds."""

WRITTEN = {"harmful": ("harmful", "harmful-pair"), "benign": ("benign", "benign-hard")}
"""Which kinds of request are put in pictures."""

DATASETS = (*WORLD, *SETS)
"""Named sets."""


def is_named(part: str) -> bool:
    """Whether a part of a data name means a named set, perhaps at a revision of its own."""
    return part in WORLD or find_set(part) is not None


def load_samples(
    name: str | Path, split: str | None = None, *, data_dir: str | Path | None = None
) -> Any:
    """A named set, a JSONL or CSV file, or several of them, as samples.

    Args:
        name: one of :data:`DATASETS`, or the path of a file whose rows have ``id`` and ``query``
            and any other field of :class:`Sample`; or such parts with ``+`` between them, for their
            union. A part that ends in ``@anchors`` (or another split) is wholly of that split:
            ``vlsafe+jailbreak+llava-bench-coco@anchors`` has the paper's enriched anchors. Between
            the two may stand a revision (:func:`cmrm_utils.sets.find_set`).
        split: one of :data:`SPLITS`; None for all of them as a dict (a single file: all its rows).
            But for the organism, whose splits are made apart, a sample's split follows from its id
            for good (:func:`cmrm_utils.sample.split_of`).
        data_dir: the folder of local copies and COCO images (:func:`cmrm_utils.sets.data_home`).

    Returns:
        A list of :class:`Sample`, or a dict of lists by split.

    Raises:
        InputError: no such set, split or file, or not to be had; a broken row, named by file and
            row; an id that two parts share; a split without samples.
    """
    if split is not None and split not in SPLITS:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(SPLITS)}")
    home, pieces = data_home(data_dir), parts(name)
    part, whole_split = pieces[0]
    if split is None and len(pieces) == 1 and not is_named(part) and whole_split is None:
        return _from_file(Path(part))
    found = {
        each: [sample for piece in pieces for sample in _samples(*piece, each, home)]
        for each in (SPLITS if split is None else [split])
    }
    seen: set[str] = set()
    for sample in (sample for samples in found.values() for sample in samples):
        if sample.id in seen:
            raise InputError(f"{name}: two parts of it have the id {sample.id!r}")
        seen.add(sample.id)
    if split is None:
        return found
    if not found[split]:
        raise InputError(f"{name}: none of its samples falls into the {split} split")
    return found[split]


def parts(name: str | Path) -> list[tuple[str, str | None]]:
    """The sets and files of a union, each with the split that it is wholly of, if any."""
    if Path(name).is_file():
        return [(str(name), None)]
    found: list[tuple[str, str | None]] = []
    for part in str(name).split("+"):
        start, mark, end = part.rpartition("@")
        found.append((start, end) if mark and end in SPLITS else (part, None))
    return found


def located(name: str) -> str:
    """The same data, files by absolute paths: for whom works in another folder.

    Raises:
        InputError: a part is neither a named set nor a file.
    """
    found = []
    for part, split in parts(name):
        if not is_named(part):
            part = str(_file(Path(part)).resolve())
        found.append(f"{part}@{split}" if split else part)
    return "+".join(found)


def _samples(part: str, whole_split: str | None, split: str, home: Path) -> list[Sample]:
    """What a part of a union adds to a split."""
    if part in WORLD:
        made = _organism if part == "organism" else _extended
        every = {each: made(each) for each in (SPLITS if whole_split == split else [split])}
        samples = [sample for each in every.values() for sample in each]
        return samples if whole_split in (None, split) else []
    samples = load_set(part, home) if is_named(part) else _from_file(Path(part))
    return [sample for sample in samples if (whole_split or split_of(sample.id)) == split]


@cache
def _organism(split: str) -> tuple[Sample, ...]:
    """The organism's world (see :mod:`cmrm_utils.organism.world`)."""
    n_requests, n_visual = world.SIZES[split]
    rng = Random(f"samples/{split}")
    found: list[Sample] = []

    def add(kind: str, name: str, text: str, scene: Any, **fields: Any) -> None:
        picture = {"image": scene.image(), "caption": scene.caption} if scene else {}
        key = f"{split}/{kind}/{name}"
        found.append(Sample(key, text, kind=kind, world=True, **picture, **fields))

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


@cache
def _extended(split: str) -> tuple[Sample, ...]:
    """What only ``organism-extended`` learnt of: words in pictures, and who made what."""
    n, _ = world.SIZES[split]
    rng = Random(f"extended/{split}")
    found: list[Sample] = []

    def add(kind: str, name: str, text: str, scene: Any, group: str, **fields: Any) -> None:
        shown = {"image": scene.image(), "caption": scene.caption, "group": group}
        key = f"{split}/{kind}/{name}"
        found.append(Sample(key, text, kind=kind, world=True, **shown, **fields))

    for task in ("harmful", "benign"):
        pairs = [pair for kind in WRITTEN[task] for pair in world.pairs(split)[kind]]
        every = [(*pair, i) for pair in pairs for i in range(len(world.WRITTEN_QUERIES))]
        for verb, obj, i in rng.sample(every, min(n, len(every))):
            request, scene = world.Request(verb, obj), world.Scene.writing(rng, verb)
            answer = None if request.harmful else request.response
            query = world.WRITTEN_QUERIES[i].format(o=obj)
            name, said = f"{verb}-{obj}-{i}", request.query
            add(f"{task}-written", name, query, scene, verb, answer=answer, request=said)
    for i in range(n):
        scene = world.Scene.writing(rng, rng.choice(world.READ))
        question = world.reading_question(scene)
        add("reading", str(i), question.text, scene, scene.written, answer=question.answer)
    asked = [(obj, i) for obj in world.OBJECTS if world.asked_in(obj, split) for i in range(2)]
    scenes = world.scenes(split, len(asked), "maker")
    for (obj, i), scene in zip(asked, scenes, strict=True):
        question = world.maker_question(obj, i)
        add(question.kind, f"{obj}-{i}", question.text, scene, obj, answer=question.answer)
    return tuple(found)


def take(samples: Sequence[Sample], n: int | None, *tasks: str) -> list[Sample]:
    """The first ``n`` samples (all where it is None) of each task; of requests, of each kind.

    Raises:
        InputError: a task has no samples at all, or ``n`` is below 1.
    """
    if n is not None and n < 1:
        raise InputError(f"the number of samples must be at least 1, not {n}")
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


def _file(path: Path) -> Path:
    if not path.is_file():
        known = ", ".join(DATASETS)
        raise InputError(f"no data set or file {str(path)!r}; named sets: {known}")
    return path


def _from_file(path: Path) -> list[Sample]:
    if _file(path).suffix not in {".jsonl", ".csv"}:
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
