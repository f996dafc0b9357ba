"""The public data sets' files, and the samples in them.

This repository holds no public data. Files come from the hub, or from a local copy in the hub's
own layout: the folder ``<data>/<set>`` if it exists. The revision is the one that the set's record
pins, or the one in its name (``mm-safetybench@<commit>``). If there is neither, the first call
takes the hub's newest and notes its commit in ``<data>/revisions.json``; later calls take that
commit. Copy that file with the results.
No pin has been tried against the hub here; a wrong one ends in an error that names it.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from cmrm_utils.data import coco
from cmrm_utils.data.pairing import pair
from cmrm_utils.data.record import PublicSet
from cmrm_utils.data.rows import one_line, read_rows
from cmrm_utils.data.sets import SCENES, SETS, find_set
from cmrm_utils.errors import InputError
from cmrm_utils.sample import Sample
from cmrm_utils.store import read_json, write_json

REVISIONS = "revisions.json"
"""In the folder of all data: the commits that unpinned sets were first taken at."""


def find_files(public: PublicSet, home: Path, *, download: bool = True) -> list[Path]:
    """The set's data files: of the local copy if its folder exists, else of the hub.

    Args:
        public: the set.
        home: the folder of all data.
        download: False to take only what the hub's cache on this machine holds.

    Raises:
        InputError: a file cannot be had; the message says how to get it.
    """
    folder = home / public.name
    copy = f"in {home}, run: {public.command}"
    if folder.is_dir():
        if missing := [name for name in public.files if not (folder / name).is_file()]:
            raise InputError(f"{public.name}: no {missing[0]} in {folder}; {copy}")
        return [folder / name for name in public.files]
    if public.hub is None:
        raise InputError(f"{public.name}: no folder {folder}; {copy}")
    return _hub_files(public, public.hub, home, copy, download=download)


def _hub_files(public: PublicSet, hub: str, home: Path, copy: str, *, download: bool) -> list[Path]:
    """The set's data files in the hub's cache; ``copy`` says how to make a local copy instead."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE

    revision = public.revision or _known_revisions(home).get(hub)
    options: Any = {"repo_type": "dataset", "local_files_only": not download}
    try:
        names = (*public.files, *public.beside)
        paths = [Path(hf_hub_download(hub, name, revision=revision, **options)) for name in names]
    except (OSError, ValueError) as error:
        if not download:
            raise InputError(
                f"{public.name}: not on this machine ({public.size}); run: "
                f"cmrm data check {public.part} --fetch; or {copy}"
            ) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(
                f"{public.name}: {error.filename or HF_HUB_CACHE} cannot be written "
                f"({error.strerror}); set HF_HUB_CACHE (now {HF_HUB_CACHE}) and CMRM_DATA (now "
                f"{home}) to folders that can; a local copy will do: {copy}"
            ) from error
        raise InputError(
            f"{public.name}: cannot get {hub} from the hub ({type(error).__name__}: "
            f"{one_line(error):.200}); a local copy will do: {copy}"
        ) from error
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", paths[0].as_posix())
    if revision is None and commit:
        write_json(home / REVISIONS, {**_known_revisions(home), hub: commit[1]})
    return paths[: len(public.files)]


def _known_revisions(home: Path) -> dict[str, Any]:
    """The commits that unpinned sets were first taken at, by hub id."""
    path = home / REVISIONS
    return read_json(path) if path.is_file() else {}


def load_set(
    name: str, home: Path, *, download: bool = True, split: str | None = None
) -> list[Sample]:
    """All samples of a public set; a process reads its files once.

    Samples whose COCO images the host lacks are left out; a warning names them.

    Args:
        name: a key of :data:`SETS`, perhaps with a revision (:func:`find_set`).
        home: the folder of all data (:func:`data_home`).
        download: False to take only what is on this machine.
        split: the split that the whole set goes into; a paired set then takes images of that split
            alone.

    Raises:
        InputError: a file cannot be had, a row is broken, an image file holds no image, an id
            repeats, or COCO images have yet to be fetched.
    """
    samples = read_set(name, home, download=download, split=split)
    missing = missing_images(samples, home)
    gone = coco.absent(home / "coco")
    part = f"{name}@{split}" if split else name
    if unfetched := [image for image in missing.values() if image not in gone]:
        raise InputError(
            f"{name}: {len(set(unfetched))} of its COCO images are not in {home / 'coco'}; "
            f"run: cmrm data check {part} --fetch"
        )
    if missing:
        warnings.warn(
            f"{name}: left out, since COCO lacks their images: {', '.join(missing)}", stacklevel=2
        )
    return [sample for sample in samples if sample.id not in missing]


@cache
def read_set(
    name: str, home: Path, *, download: bool = True, split: str | None = None
) -> tuple[Sample, ...]:
    """All samples of a public set, whether or not their COCO images are there.

    Raises:
        InputError: as :func:`load_set`.
    """
    public = find_set(name)
    if public is None:
        raise InputError(f"no data set {name!r}; there are {', '.join(SETS)}")
    by_id: dict[str, Sample] = {}
    for path in find_files(public, home, download=download):
        for row in read_rows(path, public.columns):
            for sample in public.samples(row, home):
                seen = 1
                while (key := sample.id if seen == 1 else f"{sample.id}#{seen}") in by_id:
                    if not public.repeats:
                        raise row.wrong(f"duplicate id {sample.id!r}")
                    seen += 1
                by_id[key] = replace(sample, id=key)
    samples = list(by_id.values())
    if public.paired:
        scenes = read_set(SCENES, home, download=download)
        samples = pair(samples, [scene for scene in scenes if "#" not in scene.id], split)
    return tuple(samples)


def missing_images(samples: Sequence[Sample], home: Path) -> dict[str, str]:
    """COCO images that are not in the folder of all data, as paths on the host, by sample id."""
    folder = home / "coco"
    return {
        sample.id: sample.image.relative_to(folder).as_posix()
        for sample in samples
        if isinstance(sample.image, Path)
        and sample.image.is_relative_to(folder)
        and not sample.image.is_file()
    }
