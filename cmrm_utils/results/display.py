"""What notebooks show beside figures: shaded tables, and answers behind a fold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from cmrm_utils.conditions import CONDITION_NAMES


@dataclass(frozen=True, eq=False)
class Shaded:
    """A table of numbers as text, each on a ground as dark as its share is large.

    The ground is translucent, so the table reads on a light page and on a dark one.

    Attributes:
        text: the cells.
        shares: how dark each cell's ground is, from 0 to 1; missing: not at all.
        note: one sentence under the table.
        most: rows shown; the others are behind a fold.
    """

    text: pd.DataFrame
    shares: pd.DataFrame
    note: str = ""
    most: int = 10

    def beside(self, name: str, column: pd.Series) -> "Shaded":
        """The table with a column of text before the others, unshaded; empty where it has none."""
        text, shares = self.text.copy(), self.shares.copy()
        text.insert(0, name, column.reindex(text.index).fillna(""))
        shares.insert(0, name, float("nan"))
        return Shaded(text, shares, self.note, self.most)

    def __repr__(self) -> str:
        return f"{self.text}\n{self.note}".strip()

    def _repr_html_(self) -> str:
        if self.text.empty:
            return ""
        cells = self.text.astype(object)
        for i, column in enumerate(cells):
            pairs = zip(self.text[column], self.shares.iloc[:, i], strict=True)
            cells[column] = [_shade(text, share) for text, share in pairs]
        cells = cells.rename(index=_escaped, columns=_escaped)
        look = {"escape": False, "border": 0, "index_names": cells.index.nlevels > 1}
        page = cells.head(self.most).to_html(**look)
        if len(rest := cells.iloc[self.most :]):
            rows = f"{len(rest)} more row{'s' if len(rest) > 1 else ''}"
            page += f"<details><summary>{rows}</summary>{rest.to_html(**look)}</details>"
        return page + (f"<p>{escape(self.note)}</p>" if self.note else "")


def _escaped(name: object) -> object:
    """A row's or column's name as HTML; an image condition by its label."""
    return escape(CONDITION_NAMES.get(name, name)) if isinstance(name, str) else name


def _shade(text: str, share: float) -> str:
    """A cell as HTML."""
    if pd.isna(share):
        return escape(text)
    depth = 0.6 * min(max(share, 0.0), 1.0)
    style = f"display: block; padding: 0 6px; background-color: rgba(0, 114, 178, {depth:.2f})"
    return f'<span style="{style}">{escape(text)}</span>'


def rate_table(
    rows: pd.DataFrame, index: str | Sequence[str], columns: str, *, note: str = "", most: int = 10
) -> Shaded:
    """Rates in per cent, shaded; means as they are. Rows and columns in order of first appearance.

    Args:
        rows: of :func:`cmrm_utils.results.rates.measures`; what has no ``hits`` is a mean.
        index: the column or columns that name the rows.
        columns: the column that names the columns.
        note: one sentence under the table.
        most: rows shown; the others are behind a fold.
    """
    index = [index] if isinstance(index, str) else list(index)
    means = rows["hits"].isna()
    text = rows["rate"].map("{:.1%}".format).where(~means, rows["rate"].map("{:+.1f}".format))
    wide = [
        rows.assign(cell=cells).pivot_table(
            index=index, columns=columns, values="cell", aggfunc="first", sort=False
        )
        for cells in (text, rows["rate"].where(~means))
    ]
    order = [name for name in rows[columns].unique() if name in wide[0]]
    written, shares = (table.reindex(columns=order).rename_axis(columns=None) for table in wide)
    written = written.dropna(how="all").fillna("")
    return Shaded(written, shares.reindex(written.index).astype(float), note, most)


def number_table(
    table: pd.DataFrame,
    *,
    form: str = "{:.2f}",
    full: float | None = None,
    note: str = "",
    most: int = 10,
) -> Shaded:
    """Numbers, each shaded by its size.

    Args:
        table: the numbers.
        form: how they are written.
        full: the size that has the darkest ground; None for no shading.
        note: one sentence under the table.
        most: rows shown; the others are behind a fold.
    """
    shares = table.abs() / full if full else table.astype(float) * float("nan")
    text = table.map(lambda value: "" if pd.isna(value) else form.format(value))
    return Shaded(text, shares, note, most)


class Answers:
    """The answers to questions that a reader was asked to predict: each behind a fold.

    Args:
        answers: by question: whether it is so, and the numbers that say so.
    """

    def __init__(self, answers: Mapping[str, tuple[bool, str]]) -> None:
        self.answers = {question: (bool(so), why) for question, (so, why) in answers.items()}

    def __repr__(self) -> str:
        return "".join(f"{question} {_word(so)}. {why}\n" for question, (so, why) in self)

    def __iter__(self) -> Iterator[tuple[str, tuple[bool, str]]]:
        return iter(self.answers.items())

    def _repr_html_(self) -> str:
        return "".join(
            f"<details><summary>{escape(question)}</summary>"
            f"<p><strong>{_word(so)}.</strong> {escape(why)}</p></details>"
            for question, (so, why) in self
        )


def _word(so: bool) -> str:
    return "Yes" if so else "No"
