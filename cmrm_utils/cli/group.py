"""The group that commands join, and the types that several of them share."""

from pathlib import Path
from typing import Any

import click

from cmrm_utils.errors import InputError


class _New(click.Path):
    """A path to write to: no folder above it may be a file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if file := next((each for each in Path(value).parents if each.is_file()), None):
            self.fail(f"Directory {str(file)!r} is a file.", param, ctx)
        return path


PATH = click.Path(path_type=Path)
NEW_FILE = _New(path_type=Path, dir_okay=False)
NEW_FOLDER = _New(path_type=Path, file_okay=False)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


class Command(click.Group):
    """A command group that reports bad input in one line, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an :class:`InputError` becomes one line without a traceback."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"cmrm: {error}", err=True)
            ctx.exit(2)


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Measure what images do to a model's refusals, and what a shift vector restores.

    Start with `cmrm run`: five notebooks on a bundled model, then open runs/default/report.html.
    """
