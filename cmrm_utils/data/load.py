"""Data by name: the organism's world, the public sets, anyone's own file, and unions of them."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cmrm_utils.data import coco
from cmrm_utils.data.files import existing_file, from_file
from cmrm_utils.data.named import OWN, is_named
from cmrm_utils.data.public import load_set, missing_images, read_set
from cmrm_utils.data.sets import SCENES, find_set
from cmrm_utils.errors import InputError
from cmrm_utils.paths import data_home
from cmrm_utils.sample import SPLITS, TASKS, Sample, split_of


def load_samples(
    name: str | Path, split: str | None = None, *, data_dir: str | Path | None = None
) -> Any:
    """A named set, a JSONL or CSV file, or several of them, as samples.

    Example:
        >>> samples = load_samples("organism", "test")
        >>> samples[0].task, samples[0].harmful
        ('harmful', True)

    Args:
        name: one of :data:`~cmrm_utils.data.named.DATASETS`, or the path of a file whose rows have
            ``id`` and ``query`` and any other field of :class:`Sample` but ``world``; or a union of
            such parts, with ``+`` between them. A part that ends in ``@anchors`` (or another split)
            is wholly of that split, and so are the images that it is given:
            ``vlsafe+jailbreak+llava-bench-coco@anchors`` has the paper's enriched anchors. Between
            the two a revision may stand (:func:`cmrm_utils.data.sets.find_set`).
        split: one of :data:`SPLITS`; None for all of them as a dict (a single file: all its rows).
            A sample's split follows from its id for good (:func:`cmrm_utils.sample.split_of`); only
            the organism makes each split apart.
        data_dir: the folder of local copies and COCO images (:func:`cmrm_utils.paths.data_home`).

    Returns:
        A list of :class:`Sample`, or a dict of lists by split.

    Raises:
        InputError: a set, split or file does not exist or cannot be had; a row is broken (named by
            file and row); two parts share an id; an image would be in two splits; the split has no
            samples.
    """
    if split is not None and split not in SPLITS:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(SPLITS)}")
    home, pieces = data_home(data_dir), parts(name)
    _check_scenes(name, pieces)
    part, whole_split = pieces[0]
    if split is None and len(pieces) == 1 and not is_named(part) and whole_split is None:
        return from_file(Path(part))
    by_split = {
        each: [sample for piece in pieces for sample in _samples(*piece, each, home)]
        for each in (SPLITS if split is None else [split])
    }
    if twice := _repeated_id(chain(*by_split.values())):
        raise InputError(f"{name}: two parts of it have the id {twice!r}")
    if split is None:
        return by_split
    if not by_split[split]:
        raise InputError(f"{name}: none of its samples falls into the {split} split")
    return by_split[split]


def _repeated_id(samples: Iterable[Sample]) -> str | None:
    """The first id that two samples have, or None."""
    counts = Counter(sample.id for sample in samples)
    return next((i for i, count in counts.items() if count > 1), None)


def parts(name: str | Path) -> list[tuple[str, str | None]]:
    """The sets and files of a union, each with the split that it is wholly of, if any."""
    if os.path.isfile(name):  # unlike Path.is_file, no error where the name is too long for one
        return [(str(name), None)]
    pieces: list[tuple[str, str | None]] = []
    for part in str(name).split("+"):
        start, _, end = part.rpartition("@")
        pieces.append((start, end) if end in SPLITS else (part, None))
    return pieces


def located(name: str) -> str:
    """The same data with absolute paths of files, to be loaded from another folder.

    Raises:
        InputError: a part is neither a named set nor a file.
    """
    pieces = []
    for part, split in parts(name):
        if not is_named(part):
            part = str(existing_file(Path(part)).resolve())
        pieces.append(f"{part}@{split}" if split else part)
    return "+".join(pieces)


def left_out(name: str | Path, data_dir: str | Path | None = None) -> dict[str, str]:
    """The samples that :func:`load_samples` leaves out since COCO lacks their images.

    Args:
        name: as for :func:`load_samples`.
        data_dir: likewise.

    Returns:
        The reason by the sample's id; files and the organism's world have none.

    Raises:
        InputError: a set's files cannot be had, or are broken.
    """
    home = data_home(data_dir)
    gone = coco.absent(home / "coco")
    reasons: dict[str, str] = {}
    for part, split in parts(name):
        if find_set(part) is not None:
            missing = missing_images(read_set(part, home, split=split), home)
            reasons |= {sample: gone[image] for sample, image in missing.items() if image in gone}
    return reasons


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
    if of_split := OWN.get(part):
        if whole_split not in (None, split):
            return []
        return [s for each in (SPLITS if whole_split else [split]) for s in of_split(each)]
    named = is_named(part)
    samples = load_set(part, home, split=whole_split) if named else from_file(Path(part))
    return [sample for sample in samples if (whole_split or split_of(sample.id)) == split]


def take(samples: Sequence[Sample], n: int | None, *tasks: str) -> list[Sample]:
    """The first ``n`` samples of each task, or of each kind of requests; all if it is None.

    Raises:
        InputError: a task has no samples at all, two samples have one id, or ``n`` is below 1.
    """
    if n is not None and n < 1:
        raise InputError(f"the number of samples must be at least 1, not {n}")
    if twice := _repeated_id(samples):
        raise InputError(f"two samples have the id {twice!r}")
    taken = []
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
            taken += [s for kind in kinds for s in [s for s in these if s.kind == kind][:n]]
        else:
            taken += these[:n]
    return taken
