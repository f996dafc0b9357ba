"""Types and options that several commands share."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)

with_model = click.option(
    "--model", default="organism", show_default=True, help="Name of an organism, folder or hub id."
)
with_parameters = click.option(
    "-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter."
)
