"""``cmrm bake``: dataset-level CMRM as a plain checkpoint."""

from pathlib import Path

import click

from cmrm_utils.cli.group import PATH, cli, with_model


@cli.command()
@click.argument("vectors", type=PATH)
@click.option("--alpha", type=float, required=True, help="Strength of the edit.")
@click.option("--out", type=PATH, required=True, help="Folder to make.")
@with_model
def bake(vectors: Path, alpha: float, out: Path, model: str) -> None:
    """Fold dataset-level CMRM into a plain checkpoint that needs no hook.

    VECTORS is a file that `cmrm extract` made of the same model. The edit covers every layer and
    every token. It acts on prompts without an image too.
    """
    from cmrm_utils.loading import load_vlm
    from cmrm_utils.methods.cmrm import CMRM
    from cmrm_utils.vectors import ShiftVectors
    from cmrm_utils.weights import bake as baking

    shift = ShiftVectors.load(vectors)
    edit = CMRM(shift, alpha)
    baking.check_edit(edit)  # before loading a large model
    baking.check_free(out)
    baking.bake(load_vlm(model), edit, out, vectors=shift)
    click.echo(f"{out}: {model} with CMRM dataset, alpha {alpha:g}; see its README.md")
