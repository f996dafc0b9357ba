"""``cmrm convert`` and ``cmrm extract``: checkpoints for transformers, and shift vectors."""

from pathlib import Path
from typing import Any

import click

from cmrm_utils.cli.group import PATH, cli, with_model
from cmrm_utils.errors import InputError


@cli.command()
@click.argument("source")
@click.argument("out", type=PATH)
@click.option("--tower", required=True, help="Folder or hub id of its vision tower.")
def convert(source: str, out: Path, tower: str) -> None:
    """Convert an original LLaVA checkpoint for transformers.

    SOURCE is a folder or a hub id in the format of LLaVA's own code: LLaVA-1.5, ShareGPT4V and
    VLGuard's models. OUT is the folder to make. Takes about 2 GB of memory beyond the largest file.

    \b
    cmrm convert Lin-Chen/ShareGPT4V-7B models/sharegpt4v-7b
      --tower Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12
    cmrm convert ys-zong/llava-v1.5-7b-Mixed models/vlguard-7b-mixed
      --tower openai/clip-vit-large-patch14-336
    """  # noqa: D301
    from cmrm_utils.weights.convert import convert as make

    make(source, out, tower=tower)
    click.echo(f"{out}: load it with load_vlm({str(out)!r})")


@cli.command()
@with_model
@click.option("--anchors", required=True, metavar="DATA", help="A file (all its rows), or a set.")
@click.option("--out", required=True, type=PATH, help="Safetensors file.")
@click.option("--task", "tasks", multiple=True, help="Only anchors of this task (harmful ...).")
@click.option("--meaningless", default="blank", show_default=True, help="The meaningless image.")
@click.option("--level", type=click.Choice(["dataset", "sample"]), default="dataset")
@click.option("--estimator", type=click.Choice(["mean", "pc1"]), default="mean")
@click.option("--scale", type=click.Choice(["raw", "unit", "std"]), default="raw")
def extract(
    model: str, anchors: str, out: Path, tasks: tuple[str, ...], meaningless: str, **how: Any
) -> None:
    """Extract a MODEL's shift vectors on ANCHORS and save them.

    A set, or a union of sets and files, gives its anchors split; one file gives every row.
    """
    from cmrm_utils.data.load import load_samples, take

    loaded = load_samples(anchors)
    samples = loaded["anchors"] if isinstance(loaded, dict) else loaded
    if tasks:
        samples = take(samples, None, *tasks)
    if not samples:
        raise InputError(f"{anchors}: no samples in its anchors split")

    from cmrm_utils.conditions import IMAGES
    from cmrm_utils.loading import load_vlm
    from cmrm_utils.studies.parameters import unknown
    from cmrm_utils.vectors import extract_shift

    if meaningless not in IMAGES:
        raise unknown("no image", meaningless, IMAGES)
    vlm = load_vlm(model)
    vectors = extract_shift(vlm, samples, meaningless=meaningless, progress=True, **how)
    vectors.save(out)
    low, high = vectors.norms.min(), vectors.norms.max()
    click.echo(
        f"{out}: {how['level']}-level vectors of {len(samples)} anchors, "
        f"{vectors.values.shape[-2]} layers x {vectors.values.shape[-1]}, "
        f"norms {low:.3g} to {high:.3g}"
    )
