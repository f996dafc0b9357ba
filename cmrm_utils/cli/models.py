"""Commands that make files of models: checkpoints, shift vectors, organisms and their cards."""

import shutil
from pathlib import Path
from typing import Any

import click

from cmrm_utils.cli.group import FOLDER, NEW_FILE, NEW_FOLDER, PATH, cli
from cmrm_utils.errors import InputError, unknown

with_model = click.option(
    "--model", default="organism", show_default=True, help="Name of an organism, folder or hub id."
)


@cli.group()
def models() -> None:
    """Which models are right here."""


@models.command("check")
@click.argument("name", default="organism")
@click.option("--layers", help="Path of its decoder layers, for a family that has none here.")
def models_check(name: str, layers: str | None) -> None:
    """Compare a few passes of the engine with transformers alone, and say how the model runs.

    NAME is an organism, a folder or a hub id. A model that is refused has its table, too.
    """
    from cmrm_utils.checks.model import report_on
    from cmrm_utils.loading import load_vlm

    vlm = load_vlm(name, layers=layers, check=False)
    report = report_on(vlm)
    if report.rows:
        click.echo("| way | compared | difference | at most | |\n|---|---|---|---|---|")
    for row in report.rows:
        found, verdict = row.note or f"{row.difference:.1e}", "right" if row.right else "differs"
        click.echo(f"| {row.way} | {row.what} | {found} | {row.bound:.0e} | {verdict} |")
    if report.way is None:
        raise InputError(f"{name}: {report.reason}")
    reason = f": {report.reason}" if report.reason else ""
    click.echo(f"\n{name} ({type(vlm.model).__name__}) runs {report.way}{reason}")


@cli.command()
@click.argument("source")
@click.argument("out", type=NEW_FOLDER)
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
@click.option("--out", required=True, type=NEW_FILE, help="Safetensors file.")
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


@cli.command()
@click.argument("vectors", type=PATH)
@click.option("--alpha", type=float, required=True, help="Strength of the edit.")
@click.option("--out", type=NEW_FOLDER, required=True, help="Folder to make.")
@with_model
def bake(vectors: Path, alpha: float, out: Path, model: str) -> None:
    """Fold dataset-level CMRM into a plain checkpoint that needs no hook.

    VECTORS is a file that `cmrm extract` made of the same model. The edit covers every layer and
    every token. It acts on prompts without an image too.
    """
    from cmrm_utils.loading import load_vlm
    from cmrm_utils.methods.cmrm import CMRM
    from cmrm_utils.store import check_free
    from cmrm_utils.vectors import ShiftVectors
    from cmrm_utils.weights import bake as baking

    shift = ShiftVectors.load(vectors)
    edit = CMRM(shift, alpha)
    baking.check_edit(edit)  # before loading a large model
    check_free(out)
    baking.bake(load_vlm(model), edit, out, vectors=shift)
    click.echo(f"{out}: {model} with CMRM dataset, alpha {alpha:g}; see its README.md")


@cli.command("train-organism")
@click.option("--variant", default="organism", show_default=True, help="Which organism.")
@click.option("--seed", default=0, show_default=True, help="Of weights and data.")
@click.option("--out", type=NEW_FOLDER, help="Folder. [default: organisms/VARIANT]")
@click.option("--device", default=None, help="Where to train. [default: a GPU if there is one]")
@click.option(
    "--shared", type=NEW_FOLDER, help="Folder of first stages, shared by several variants."
)
def train_organism(
    variant: str, seed: int, out: Path | None, device: str | None, shared: Path | None
) -> None:
    """Train an organism, measure it, write its card; or smollm2-llava and its variants.

    Every command then knows it by the name of its folder in organisms/. Variants that begin with
    the same stages train them once: --shared is where they are read from and written to.
    """
    import torch

    from cmrm_utils.bundled import recipe as pretrained
    from cmrm_utils.organism.recipe import VARIANTS
    from cmrm_utils.organism.training import train
    from cmrm_utils.paths import ORGANISMS, bundled_folders
    from cmrm_utils.studies import card

    if variant not in {**VARIANTS, **pretrained.VARIANTS}:
        raise unknown("no variant", variant, [*VARIANTS, *pretrained.VARIANTS])
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if variant in pretrained.VARIANTS:
        from cmrm_utils.bundled import training

        folder = out or ORGANISMS / (f"{variant}-seed{seed}" if seed else variant)
        work = shared or ORGANISMS / "stages"
        parts = training.train(pretrained.VARIANTS[variant], seed, work, device=place)
        shutil.copytree(parts, folder, dirs_exist_ok=True)
        if folder.name in bundled_folders() and pretrained.training_command(folder.name):
            card.measure_parts(folder)
            card.render_parts(folder)
        click.echo(f"{folder}: load it with load_vlm({folder.name!r})")
        return
    folder = out or ORGANISMS / variant
    stages = card.StageMeasurements()
    train(VARIANTS[variant], seed, folder, device=place, shared=shared, on_stage=stages)
    card.write(folder, stages)
    click.echo((folder / "README.md").read_text())


@cli.command()
@click.argument("folders", nargs=-1, type=FOLDER)
def cards(folders: tuple[Path, ...]) -> None:
    """Rewrite the model cards from stored measurements.

    FOLDERS are an organism's checkpoint or a bundled model's parts; by default all that the
    repository has.
    """
    from cmrm_utils.paths import CHECKPOINTS, PARTS
    from cmrm_utils.studies import card

    for folder in folders or sorted([*CHECKPOINTS.iterdir(), *PARTS.glob("*")]):
        bundled = (folder / "projector.safetensors").is_file()
        (card.render_parts if bundled else card.render)(folder)
        click.echo(f"{folder / 'README.md'}")
