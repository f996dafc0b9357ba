"""Data by name: the organism's world, the public sets, anyone's own file, and unions of them."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, get_args

from cmrm_utils import coco
from cmrm_utils.errors import InputError
from cmrm_utils.organism import world
from cmrm_utils.paths import data_home
from cmrm_utils.rows import parse_json, read_row_file
from cmrm_utils.sample import (
    SHARES,
    SPLITS,
    TASKS,
    Sample,
    answer_letter,
    checked,
    options,
    split_of,
)
from cmrm_utils.sets import SCENES, SETS, find_set, load_set, missing_images, read_set

__all__ = [
    "DATASETS",
    "SHARES",
    "SPLITS",
    "Sample",
    "left_out",
    "load_samples",
    "located",
    "parts",
    "take",
]

FIELDS = tuple(name for name in Sample.__dataclass_fields__ if name != "world")
"""What a row of a file may hold: nothing there comes from the organism's world."""

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
            and any other field of :class:`Sample` but ``world``; or such parts with ``+`` between
            them, for their union. A part that ends in ``@anchors`` (or another split) is wholly of
            that split, and so are the images that it is given:
            ``vlsafe+jailbreak+llava-bench-coco@anchors`` has the paper's enriched anchors. Between
            the two may stand a revision (:func:`cmrm_utils.sets.find_set`).
        split: one of :data:`SPLITS`; None for all of them as a dict (a single file: all its rows).
            But for the organism, whose splits are made apart, a sample's split follows from its id
            for good (:func:`cmrm_utils.sample.split_of`).
        data_dir: the folder of local copies and COCO images (:func:`cmrm_utils.paths.data_home`).

    Returns:
        A list of :class:`Sample`, or a dict of lists by split.

    Raises:
        InputError: no such set, split or file, or not to be had; a broken row, named by file and
            row; an id that two parts share; an image that would be in two splits; a split without
            samples.
    """
    if split is not None and split not in SPLITS:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(SPLITS)}")
    home, pieces = data_home(data_dir), parts(name)
    _check_scenes(name, pieces)
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
    if os.path.isfile(name):  # unlike Path.is_file, no error where the name is too long for one
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


def left_out(name: str | Path, data_dir: str | Path | None = None) -> dict[str, str]:
    """The samples that :func:`load_samples` leaves out, and why: COCO lacks their images.

    Args:
        name: as for :func:`load_samples`.
        data_dir: likewise.

    Returns:
        Why, by the sample's id; nothing for files and the organism's world.

    Raises:
        InputError: a set's files are not to be had, or broken.
    """
    home = data_home(data_dir)
    gone = coco.absent(home / "coco")
    found: dict[str, str] = {}
    for part, split in parts(name):
        if find_set(part) is not None:
            missing = missing_images(read_set(part, home, split=split), home)
            found |= {sample: gone[image] for sample, image in missing.items() if image in gone}
    return found


def _check_scenes(name: str | Path, pieces: Sequence[tuple[str, str | None]]) -> None:
    """Refuse a union in which other sets' requests take images of VLSafe from another split."""
    sets = [(public, split) for part, split in pieces if (public := find_set(part)) is not None]
    moved = {split for public, split in sets if public.name == SCENES and split is not None}
    for public, split in sets:
        if public.paired and moved - {split}:
            place = min(moved)
            raise InputError(
                f"{name}: {SCENES}@{place} puts all of its images into {place}, and "
                f"{public.name} takes images from there into other splits: "
                f"write {public.name}@{place}, or {SCENES}"
            )


def _samples(part: str, whole_split: str | None, split: str, home: Path) -> list[Sample]:
    """What a part of a union adds to a split."""
    if part in WORLD:
        made = _organism if part == "organism" else _extended
        every = {each: made(each) for each in (SPLITS if whole_split == split else [split])}
        samples = [sample for each in every.values() for sample in each]
        return samples if whole_split in (None, split) else []
    named = is_named(part)
    samples = load_set(part, home, split=whole_split) if named else _from_file(Path(part))
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
        InputError: a task has no samples at all, two samples have one id, or ``n`` is below 1.
    """
    if n is not None and n < 1:
        raise InputError(f"the number of samples must be at least 1, not {n}")
    if twice := [i for i, count in Counter(sample.id for sample in samples).items() if count > 1]:
        raise InputError(f"two samples have the id {twice[0]!r}")
    found = []
    for task in tasks:
        these = [sample for sample in samples if sample.task == task]
        if not these:
            why = f"the data set has no samples for the task {task!r}"
            if unknown := sum(sample.task == "other" for sample in samples):
                known = ", ".join(TASKS)
                why += f"; {unknown} of its {len(samples)} samples have no kind ({known} ...)"
            raise InputError(why)
        if task in ("harmful", "benign"):
            kinds = dict.fromkeys(sample.kind for sample in these)
            found += [s for kind in kinds for s in [s for s in these if s.kind == kind][:n]]
        else:
            found += these[:n]
    return found


def _file(path: Path) -> Path:
    if not os.path.isfile(path):
        if os.path.isdir(path):
            raise InputError(f"{path}: a folder, not a .jsonl or .csv file")
        raise InputError(f"no data set or file {str(path)!r}; named sets: {', '.join(DATASETS)}")
    return path


def _from_file(path: Path) -> list[Sample]:
    found: dict[str, Sample] = {}
    for number, row in read_row_file(_file(path)):
        try:
            sample = _sample(row, path.parent)
            if sample.id in found:
                raise ValueError(f"duplicate id {sample.id!r}")
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from error
        found[sample.id] = sample
    if not found:
        raise InputError(f"{path}: no samples in it")
    return list(found.values())


def _sample(row: dict[str, Any], folder: Path) -> Sample:
    """One row of a file, its relative image path resolved against the file's folder.

    Raises:
        ValueError: it is broken; the message names the field.
    """
    empty = (name for name, value in row.items() if isinstance(value, str) and not value.strip())
    fields = {name: value for name, value in row.items() if value is not None}
    for name in empty:
        del fields[name]
    if unknown := set(fields) - set(FIELDS):
        raise ValueError(f"unknown field {', '.join(map(repr, sorted(unknown)))}")
    if missing := {"id", "query"} - set(fields):
        raise ValueError(f"no {' and no '.join(sorted(missing))}")
    if isinstance(choices := fields.get("choices"), str):
        try:
            fields["choices"] = parse_json(choices)
        except ValueError as error:
            raise ValueError(f"choices must be a JSON list or mapping ({error})") from error
    if "choices" in fields:
        fields["choices"] = options(fields["choices"])
        if "answer" in fields:
            fields["answer"] = answer_letter(fields["answer"], fields["choices"])
    if not isinstance(image := fields.get("image", ""), str):
        raise ValueError(f"image must be text, the path of an image file, not {image!r:.40}")
    fields = checked(fields)
    if image:
        fields["image"] = folder / image
    return Sample(**fields)
