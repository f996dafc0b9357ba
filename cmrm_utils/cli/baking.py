"""``cmrm bake``: a correction that was found, as a plain checkpoint."""

from pathlib import Path

import click


@click.command()
@click.argument("vectors", type=click.Path(path_type=Path))
@click.option("--alpha", type=float, required=True, help="Strength of the edit.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--model", default="organism", show_default=True, help="Bundled, folder or hub id.")
def bake(vectors: Path, alpha: float, out: Path, model: str) -> None:
    """Fold dataset-level CMRM into a plain checkpoint that needs no hook.

    VECTORS is a file that `cmrm extract` made of the same model. The edit is that of every layer
    and every token; it acts on prompts without an image too.
    """
    from cmrm_utils.loading import load_vlm
    from cmrm_utils.methods.cmrm import CMRM
    from cmrm_utils.vectors import ShiftVectors
    from cmrm_utils.weights import bake as baking

    found = ShiftVectors.load(vectors)
    edit = CMRM(found, alpha)
    baking.check_edit(edit)  # before a large model is loaded
    baking.check_free(out)
    baking.bake(load_vlm(model), edit, out, vectors=found)
    click.echo(f"{out}: {model} with CMRM dataset, alpha {alpha:g}; see its README.md")
