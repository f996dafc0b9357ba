"""Tables and templates as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined


def rendered(template: Path, **values: Any) -> str:
    """A Jinja2 template with its values filled in; in ``*.html.j2``, text is escaped.

    Args:
        template: the file; it can include others of its folder.
        values: what its names stand for.

    Raises:
        jinja2.UndefinedError: the template uses a name that has no value.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=template.name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)


def markdown_table(rows: pd.DataFrame) -> str:
    """A table in Markdown, without its index; each line ends with a line break."""
    lines = [list(rows.columns), ["---"] * len(rows.columns), *rows.astype(str).values.tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(row: pd.Series) -> str:
    """A rate as it is printed: ``12.3% [8.0, 18.4] (20/163)``.

    A mean is ``-1.20 [-2.30, +0.10] (163)``, and a number without an interval ``0.315``.
    """
    if pd.isna(row["n"]):
        return f"{row['rate']:.3g}"
    if pd.isna(row["hits"]):
        return f"{row['rate']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] ({row['n']:.0f})"
    return (
        f"{row['rate']:.1%} [{100 * row['low']:.1f}, {100 * row['high']:.1f}] "
        f"({row['hits']:.0f}/{row['n']:.0f})"
    )


def without_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`percent_table`, the rates and their intervals alone."""
    return table.replace(r" \([\d/]+\)$", "", regex=True)


def percent_table(rows: pd.DataFrame, index: str | list[str], columns: str) -> pd.DataFrame:
    """Rates as text (:func:`percent`), rows and columns in order of first appearance."""
    return _spread(rows, [percent(row) for _, row in rows.iterrows()], index, columns)


def _spread(
    rows: pd.DataFrame, cells: Sequence[str], index: str | list[str], columns: str
) -> pd.DataFrame:
    """Cells as a table in order of first appearance; an empty text where there is none."""
    wide = rows.assign(cell=cells).pivot_table(
        index=index, columns=columns, values="cell", aggfunc="first", sort=False
    )
    return wide[list(rows[columns].unique())].fillna("")
