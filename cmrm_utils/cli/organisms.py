"""``cmrm train-organism`` and ``cmrm cards``: organisms and their model cards."""

from pathlib import Path

import click

from cmrm_utils.cli.group import PATH, cli


@cli.command("train-organism")
@click.option("--variant", default="organism", show_default=True, help="Which organism.")
@click.option("--seed", default=0, show_default=True, help="Of weights and data.")
@click.option("--out", type=PATH, help="Folder. [default: organisms/VARIANT]")
@click.option("--device", default=None, help="Where to train. [default: a GPU if there is one]")
@click.option("--shared", type=PATH, help="Folder of first stages, shared by several variants.")
def train_organism(
    variant: str, seed: int, out: Path | None, device: str | None, shared: Path | None
) -> None:
    """Train an organism, measure it, write its card.

    Every command then knows it by the name of its folder in organisms/. Variants that begin with
    the same stages train them once: --shared is where they are read from and written to.
    """
    import torch

    from cmrm_utils.organism.recipe import VARIANTS
    from cmrm_utils.organism.training import train
    from cmrm_utils.paths import MADE
    from cmrm_utils.studies import card
    from cmrm_utils.studies.parameters import unknown

    if variant not in VARIANTS:
        raise unknown("no variant", variant, VARIANTS)
    folder = out or MADE / variant
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    stages = card.StageMeasurements()
    train(VARIANTS[variant], seed, folder, device=place, shared=shared, on_stage=stages)
    card.write(folder, stages)
    click.echo((folder / "README.md").read_text())


@cli.command()
@click.argument("folders", nargs=-1, type=PATH)
def cards(folders: tuple[Path, ...]) -> None:
    """Rewrite the model cards of organisms from their stored measurements.

    FOLDERS are checkpoint folders; by default the bundled one.
    """
    from cmrm_utils.paths import CHECKPOINTS
    from cmrm_utils.studies import card

    for folder in folders or sorted(CHECKPOINTS.iterdir()):
        card.render(folder)
        click.echo(f"{folder / 'README.md'}")
