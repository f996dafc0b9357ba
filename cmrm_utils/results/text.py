"""Tables as text."""

import pandas as pd


def wide_table(found: pd.DataFrame) -> pd.DataFrame:
    """A :func:`comparison_table` as it is read: a row a defence, a column a measure."""
    cells = found.assign(
        cell=[
            f"{row.rate:.3g}"
            if pd.isna(row.n)
            else f"{row.rate:.1%} [{100 * row.low:.0f}, {100 * row.high:.0f}]"
            for row in found.itertuples()
        ]
    )
    wide = cells.pivot_table(
        index=["method", "setting"], columns="measure", values="cell", aggfunc="first", sort=False
    )
    return wide[list(found["measure"].unique())].fillna("")


def change_table(changes: pd.DataFrame) -> pd.DataFrame:
    """Paired changes as they are read: a row a comparison, a column a measure.

    Args:
        changes: of :func:`cmrm_utils.results.rates.paired_changes`, by ``method``.
    """
    cells = [
        f"{row.change:+.1%} [{100 * row.low:.0f}, {100 * row.high:.0f}]"
        for row in changes.itertuples()
    ]
    wide = changes.assign(cell=cells).pivot_table(
        index=["against", "method"], columns="measure", values="cell", aggfunc="first", sort=False
    )
    return wide[list(changes["measure"].unique())].fillna("")


def percent(row: pd.Series) -> str:
    """A rate as it is printed: ``12.3% [8.0, 18.4] (20/163)``."""
    return (
        f"{row['rate']:.1%} [{100 * row['low']:.1f}, {100 * row['high']:.1f}] "
        f"({row['hits']:.0f}/{row['n']:.0f})"
    )


def percent_table(rows: pd.DataFrame, index: str | list[str], columns: str) -> pd.DataFrame:
    """Rates as text (:func:`percent`), rows and columns in order of first appearance."""
    table = rows.assign(cell=rows.apply(percent, axis=1)).pivot_table(
        index=index, columns=columns, values="cell", aggfunc="first", sort=False
    )
    return table[list(rows[columns].unique())].fillna("")
