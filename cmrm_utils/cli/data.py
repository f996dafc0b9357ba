"""``cmrm data``: what data there is, what a profile needs, and how to get what is missing."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from cmrm_utils.errors import InputError
from cmrm_utils.jobs.profiles import load_profile, profile_names

if TYPE_CHECKING:
    from cmrm_utils.data.record import PublicSet


class AnyCase(click.Group):
    """A command group whose commands may be written in capitals."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, whatever its case."""
        return super().get_command(ctx, name.lower())


@click.group(cls=AnyCase)
def data() -> None:
    """Say what data there is, what a profile needs, and how to get what is missing."""


@data.command("list")
def data_list() -> None:
    """Every named set: how many samples, from where, under which licence, with what in it."""
    from cmrm_utils.data.sets import SETS
    from cmrm_utils.paths import data_home

    home = data_home()
    click.echo("organism: the bundled model's own world; harmless, nothing to download\n")
    for public in SETS.values():
        here = ", local copy" if (home / public.name).is_dir() else ""
        click.echo(f"{public.name}: {public.count} samples{here}")
        _describe(public)
        click.echo()
    click.echo(f"local copies and COCO images: {home} (or set CMRM_DATA)")


@data.command("check")
@click.argument("name", metavar="PROFILE_OR_DATA")
@click.option("--fetch", is_flag=True, help="Download files and COCO images that are missing.")
def data_check(name: str, fetch: bool) -> None:
    """See that the data of a profile, a set, a file or a union is all there and readable.

    Every file is read and every image decoded. What is missing is named, with the command that gets
    it; the exit code is then 1. Nothing is downloaded but with --fetch.
    """
    from cmrm_utils.data.load import parts
    from cmrm_utils.data.sets import is_named
    from cmrm_utils.paths import data_home

    known = {name.lower(): name for name in profile_names()}
    if name.lower() in known:
        parameters = load_profile(known[name.lower()]).get("parameters") or {}
        wanted = str(parameters.get("data", "organism"))
        click.echo(f"profile {known[name.lower()]}: data {wanted}\n")
    else:
        wanted = name
    complete = True
    for part, split in parts(wanted):
        part = part.lower() if is_named(part.lower()) else part
        complete &= _check_part(part, split, data_home(), fetch)
    if not complete:
        sys.exit(1)
    click.echo("all there")


def _describe(public: "PublicSet") -> None:
    click.echo(f"  content  {public.note}")
    click.echo(f"  from     {public.source}")
    click.echo(f"  licence  {public.licence}\n  size     {public.size}")


def _check_part(part: str, split: str | None, home: Path, fetch: bool) -> bool:
    """Print what is to be said of a set or file; whether it can be used."""
    from cmrm_utils.data import coco
    from cmrm_utils.data.load import load_samples
    from cmrm_utils.data.public import missing_images, read_set
    from cmrm_utils.data.sets import find_set

    public = find_set(part)
    if public is None:
        found = load_samples(part)
        samples = found if isinstance(found, list) else [s for each in found.values() for s in each]
    else:
        click.echo(part)
        _describe(public)
        try:
            samples = list(read_set(part, home, download=fetch, split=split))
        except InputError as error:
            click.echo(f"  MISSING  {error}\n")
            return False
        if len(samples) != public.count:
            click.echo(f"  NOTE     {len(samples)} samples, where {public.count} were expected")
        failed: dict[str, str] = {}
        if fetch:
            failed = coco.fetch(missing_images(samples, home).values(), home / "coco")
        missing = missing_images(samples, home)
        gone = coco.absent(home / "coco")
        for image, why in failed.items():
            if image not in gone:
                click.echo(f"  FAILED   {image}: {why}")
                break  # of a thousand for the same reason one will do
        for sample, image in missing.items():
            if image in gone:
                click.echo(f"  LEFT OUT {sample}: {image} ({gone[image]})")
        if waiting := {image for image in missing.values() if image not in gone}:
            click.echo(f"  MISSING  {len(waiting)} COCO images, not in {home / 'coco'}")
            whole = f"{part}@{split}" if split else part  # it is paired with that split's images
            click.echo(f"  get them: cmrm data check {whole} --fetch\n")
            return False
        samples = [sample for sample in samples if sample.id not in missing]
    for sample in tqdm(samples, desc=part, unit="sample", delay=2, leave=False):
        sample.load_image()
    counts = Counter(sample.kind or "(no kind)" for sample in samples)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    click.echo(f"  there    {part}: {len(samples)} samples: {kinds}\n")
    return True
