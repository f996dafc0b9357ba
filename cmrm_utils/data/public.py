"""The public data sets, each a record and a function that turns its rows into samples.

Nothing of them is kept in this repository. Files come from the hub, or from a local copy in the
hub's own layout: the folder ``<data>/<set>`` where that exists. A set is of the revision that its
record pins, or of the one that its name gives (``mm-safetybench@<commit>``). Where there is
neither, the hub's newest is taken the first time, and that one from then on: its commit is kept in
``<data>/revisions.json``, a file to copy with the results.
No pin was tried against the hub here; a wrong one ends in a line that says so.
"""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from cmrm_utils.data import coco
from cmrm_utils.data.pairing import pair
from cmrm_utils.data.record import PublicSet
from cmrm_utils.data.rows import one_line, read_rows
from cmrm_utils.data.sets import SCENES, SETS, find_set
from cmrm_utils.errors import InputError
from cmrm_utils.sample import Sample


def find_files(public: PublicSet, home: Path, *, download: bool = True) -> list[Path]:
    """The set's data files: of the local copy if its folder exists, else of the hub.

    Args:
        public: the set.
        home: the folder of all data.
        download: False for only what the hub's cache on this machine holds.

    Raises:
        InputError: a file that is not to be had, and how to get it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    folder = home / public.name
    copy = f"in {home}, run: {public.command}"
    if folder.is_dir():
        if missing := [name for name in public.files if not (folder / name).is_file()]:
            raise InputError(f"{public.name}: no {missing[0]} in {folder}; {copy}")
        return [folder / name for name in public.files]
    if public.local or public.hub is None:
        raise InputError(f"{public.name}: no folder {folder}; {copy}")
    if not download:
        disable_progress_bars()
    revision = public.revision or _known_revisions(home).get(public.hub)
    try:
        found = [
            Path(
                hf_hub_download(
                    public.hub,
                    name,
                    repo_type="dataset",
                    revision=revision,
                    local_files_only=not download,
                )
            )
            for name in (*public.files, *public.beside)
        ]
        if revision is None:
            _pin(public.hub, found[0], home)
        return found[: len(public.files)]
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
            f"{public.name}: cannot get {public.hub} from the hub ({type(error).__name__}: "
            f"{one_line(error):.200}); a local copy will do: {copy}"
        ) from error
    finally:
        if not download:
            enable_progress_bars()


def _known_revisions(home: Path) -> dict[str, str]:
    """The commits that unpinned sets were first taken at, by hub id.

    Raises:
        InputError: their file was broken.
    """
    path = home / "revisions.json"
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a readable list of revisions ({error})") from error


def _pin(hub: str, file: Path, home: Path) -> None:
    """Keep the commit that a file of the hub's cache is of, for next time."""
    if match := re.search(r"/snapshots/([0-9a-f]{40})/", file.as_posix()):
        home.mkdir(parents=True, exist_ok=True)
        known = {**_known_revisions(home), hub: match[1]}
        (home / "revisions.json").write_text(json.dumps(known, indent=1) + "\n")


def load_set(
    name: str, home: Path, *, download: bool = True, split: str | None = None
) -> list[Sample]:
    """All samples of a public set; its files are read once a process.

    A sample whose COCO image the host does not have is left out, with a warning that names it.

    Args:
        name: a key of :data:`SETS`, perhaps with a revision (:func:`find_set`).
        home: the folder of all data (:func:`data_home`).
        download: False for only what is on this machine.
        split: the one that all of it is put into; a paired set then takes images of it alone.

    Raises:
        InputError: a file that is not to be had, a broken row, an image file that is none, a
            duplicate id; COCO images that are yet to be fetched.
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
            f"{name}: left out, as COCO does not have their images: {', '.join(missing)}",
            stacklevel=2,
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
    found: dict[str, Sample] = {}
    for path in find_files(public, home, download=download):
        for row in read_rows(path, public.columns):
            for sample in public.samples(row, home):
                seen = 1
                while (key := sample.id if seen == 1 else f"{sample.id}#{seen}") in found:
                    if not public.repeats:
                        raise row.wrong(f"duplicate id {sample.id!r}")
                    seen += 1
                found[key] = replace(sample, id=key)
    samples = list(found.values())
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
