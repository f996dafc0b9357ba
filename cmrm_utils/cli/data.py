"""``cmrm data``: which data sets there are, what a profile needs, how to get what is missing."""

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from cmrm_utils.cli.group import cli
from cmrm_utils.errors import InputError
from cmrm_utils.jobs.profiles import load_profile, profile_names

if TYPE_CHECKING:
    from cmrm_utils.data.record import PublicSet
    from cmrm_utils.sample import Sample


@cli.group(context_settings={"token_normalize_func": str.lower})
def data() -> None:
    """List the data sets, check what a profile needs, and download what is missing."""


@data.command("list")
def data_list() -> None:
    """Show every named set: its size, content, source and licence."""
    from cmrm_utils.data.sets import SETS
    from cmrm_utils.paths import data_home

    home = data_home()
    click.echo("organism: the bundled model's own world; harmless, nothing to download\n")
    for public in SETS.values():
        here = ", local copy" if (home / public.name).is_dir() else ""
        click.echo(f"{public.name}: {public.count} samples{here}\n{_described(public)}\n")
    click.echo(f"local copies and COCO images: {home} (or set CMRM_DATA)")


@data.command("check")
@click.argument("name", metavar="PROFILE_OR_DATA")
@click.option("--fetch", is_flag=True, help="Download missing files and COCO images.")
def data_check(name: str, fetch: bool) -> None:
    """Check that the data of a profile, a set, a file or a union is complete and readable.

    Every file is read and every image decoded. What is missing is listed with the command that gets
    it, and the exit code is 1. Without --fetch nothing is downloaded but the two small files of
    requests-beside-scenes.
    """
    from cmrm_utils.data.load import parts
    from cmrm_utils.data.named import is_named
    from cmrm_utils.paths import data_home

    wanted = name
    profiles = {name.lower(): name for name in profile_names()}
    if name.endswith(".yaml") or name.lower() in profiles:
        name = profiles.get(name.lower(), name)
        wanted = str((load_profile(name).get("parameters") or {}).get("data", "organism"))
        click.echo(f"profile {name}: data {wanted}\n")
    complete = [
        _check_part(part.lower() if is_named(part.lower()) else part, split, data_home(), fetch)
        for part, split in parts(wanted)
    ]
    if not all(complete):
        sys.exit(1)
    click.echo("all there")


def _described(public: "PublicSet") -> str:
    return (
        f"  content  {public.note}\n"
        f"  from     {public.source}\n"
        f"  licence  {public.licence}\n"
        f"  size     {public.size}"
    )


def _check_part(part: str, split: str | None, home: Path, fetch: bool) -> bool:
    """Print the state of a set or file; whether it can be used."""
    from cmrm_utils.data.load import load_samples
    from cmrm_utils.data.public import read_set
    from cmrm_utils.data.sets import find_set

    if public := find_set(part):
        click.echo(f"{part}\n{_described(public)}")
        try:
            samples = list(read_set(part, home, download=fetch, split=split))
        except InputError as error:
            click.echo(f"  MISSING  {error}\n")
            return False
        if len(samples) != public.count:
            click.echo(f"  NOTE     {len(samples)} samples, where {public.count} were expected")
        missing, complete = _check_images(samples, home, fetch)
        if not complete:
            whole = f"{part}@{split}" if split else part  # the split decides which images it gets
            click.echo(f"  get them: cmrm data check {whole} --fetch\n")
            return False
        samples = [sample for sample in samples if sample.id not in missing]
    else:
        loaded = load_samples(part)
        samples = loaded if isinstance(loaded, list) else list(chain(*loaded.values()))
    for sample in tqdm(samples, desc=part, unit="sample", delay=2, leave=False):
        sample.load_image()
    counts = Counter(sample.kind or "(no kind)" for sample in samples)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    click.echo(f"  there    {part}: {len(samples)} samples: {kinds}\n")
    return True


def _check_images(
    samples: Sequence["Sample"], home: Path, fetch: bool
) -> tuple[dict[str, str], bool]:
    """Print which COCO images are missing, after a download if one is wanted.

    Returns:
        The missing images by sample id, and whether COCO's host lacks all of them. No download can
        get those.
    """
    from cmrm_utils.data import coco
    from cmrm_utils.data.public import missing_images

    folder = home / "coco"
    failed = coco.fetch(missing_images(samples, home).values(), folder) if fetch else {}
    missing, gone = missing_images(samples, home), coco.absent(folder)
    if reasons := [f"{image}: {why}" for image, why in failed.items() if image not in gone]:
        click.echo(f"  FAILED   {reasons[0]}")  # the others have mostly the same reason
    for sample, image in missing.items():
        if image in gone:
            click.echo(f"  LEFT OUT {sample}: {image} ({gone[image]})")
    waiting = set(missing.values()) - gone.keys()
    if waiting:
        click.echo(f"  MISSING  {len(waiting)} COCO images, not in {folder}")
    return missing, not waiting
