"""Rates and means of judged trials, and their changes from one setting to another."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cmrm_utils.results.intervals import bootstrap, clustered_interval, paired_difference, wilson


@dataclass(frozen=True)
class Measure:
    """What a measure counts, and how it is shown.

    Attributes:
        task: the task of the samples that it is measured on.
        hit: the outcome that counts there, or ``right``; or a column of numbers, whose mean it is.
        colour: its colour in figures, as ``#RRGGBB``.
        guarded: whether it is a utility that the choice of alpha guards.
        exact: measured only where an exact judge knows the outcome, or only where none does; None
            for both.
    """

    task: str
    hit: str
    colour: str
    guarded: bool = False
    exact: bool | None = None


LOG_ODDS = "log_odds"
"""The column of refusal log-odds, where rows have one."""


MEASURES = {
    "refused": Measure("harmful", "refused", "#009E73"),
    "unsafe": Measure("harmful", "complied", "#D55E00", exact=True),
    "neither": Measure("harmful", "neither", "#999999", exact=True),
    "answered": Measure("harmful", "complied", "#D55E00", exact=False),
    "broken": Measure("harmful", "neither", "#999999", exact=False),
    "log-odds": Measure("harmful", LOG_ODDS, "#009E73"),
    "over-refusal": Measure("benign", "refused", "#E69F00"),
    "log-odds, benign": Measure("benign", LOG_ODDS, "#E69F00"),
    "benign answered": Measure("benign", "right", "#0072B2", guarded=True),
    "visual questions": Measure("visual", "right", "#CC79A7", guarded=True),
    "choices": Measure("choice", "right", "#8C6D31", guarded=True),
    "facts": Measure("fact", "right", "#56B4E9"),
    "abstentions": Measure("unknown", "right", "#000000"),
}
"""What is reported; a new measure is one more record here.

*Refused* is the measure of safety. The rest is *unsafe* or *neither* where an exact judge knows; in
natural language it is *broken* or *answered*, an upper bound of unsafe. *Log-odds* of a refusal are
means over requests, in natural language only.
"""


REST = {"unsafe": "carried out", "neither": "neither", "answered": "answered", "broken": "broken"}
"""The measures of what becomes of harmful requests that are not refused, and each in words."""


def carried_out(rows: pd.DataFrame) -> str:
    """The measure of requests complied with: *unsafe*; without an exact judge *answered*."""
    return "unsafe" if "exact" in rows and rows["exact"].notna().any() else "answered"


UTILITY = tuple(name for name, measure in MEASURES.items() if measure.guarded)
"""The measures of what an edit may cost."""


UNSEEN = "harmful-unseen"
"""The kind of requests that are reported separately and excluded from averages."""


def rates(
    rows: pd.DataFrame, hit: str, by: Sequence[str], *, group: str | None = "group"
) -> pd.DataFrame:
    """Rates of a true-or-false column with counts and 95% intervals.

    Args:
        rows: one row per trial; kinds of sample (a column ``kind``, if there is one) are strata.
        hit: the column to average; rows where it is missing are left out.
        by: the columns that make a cell of the table, in order.
        group: the column of clusters; None for plain Wilson intervals.

    Returns:
        ``by`` + ``rate, low, high, hits, n``, rates as shares from 0 to 1.
    """
    cells = []
    known = rows[rows[hit].notna()]
    for key, cell in known.groupby(list(by), sort=False, dropna=False):
        y = cell[hit].astype(float)
        if group:
            strata = cell["kind"].tolist() if "kind" in cell else None
            interval = clustered_interval(y, cell[group].tolist(), strata)
        else:
            interval = wilson(y.sum(), len(y))
        cells.append((*key, y.mean(), *interval, int(y.sum()), len(y)))
    return pd.DataFrame(cells, columns=[*by, "rate", "low", "high", "hits", "n"])


def measures(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """All of :data:`MEASURES` that the rows allow, with intervals.

    Args:
        rows: judged trials (:func:`cmrm_utils.judges.outcomes.judge`).
        by: the columns that make a cell of the table.

    Returns:
        ``measure`` + ``by`` + ``rate, low, high, hits, n``. What is no rate but a mean
        (:func:`is_mean`) has no ``hits``.
    """
    columns = ["measure", *by, "rate", "low", "high", "hits", "n"]
    parts = []
    for name in MEASURES:
        # An empty part would turn the numbers of the others into objects.
        if not (these := _measured(rows, name).dropna(subset="hit")).empty:
            table = means(these, "hit", by) if is_mean(name) else rates(these, "hit", by)
            parts.append(table.assign(measure=name))
    return pd.concat(parts or [pd.DataFrame(columns=columns)], ignore_index=True)[columns]


def is_mean(measure: str) -> bool:
    """Whether a measure is a mean of numbers, and no rate."""
    return measure in MEASURES and MEASURES[measure].hit == LOG_ODDS


def means(rows: pd.DataFrame, column: str, by: Sequence[str]) -> pd.DataFrame:
    """Means of a column of numbers with 95% intervals, from a bootstrap that draws groups whole.

    Args:
        rows: one row per trial, with a ``group`` each; kinds of sample (a column ``kind``, if there
            is one) are strata. Rows without a number are left out.
        column: to average.
        by: the columns that make a cell of the table, in order.

    Returns:
        ``by`` + ``rate, low, high, hits, n``: the mean stands in ``rate``, and ``hits`` is missing.
    """
    cells = []
    known = rows[rows[column].notna()]
    for key, cell in known.groupby(list(by), sort=False, dropna=False):
        values = cell[column].to_numpy(dtype=float)
        strata = cell["kind"].tolist() if "kind" in cell else None
        interval = bootstrap(partial(_mean, values), cell["group"].tolist(), strata)
        cells.append((*key, *interval, np.nan, len(cell)))
    return pd.DataFrame(cells, columns=[*by, "rate", "low", "high", "hits", "n"])


def _mean(values: NDArray, counts: NDArray) -> NDArray:
    return counts @ values / counts.sum(1)


def utility(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Right answers to questions about images and to benign requests, together.

    Returns:
        ``measure`` (utility) + ``by`` + ``rate, low, high, hits, n``.
    """
    tasks = [MEASURES[name].task for name in UTILITY]
    pooled = rates(_counted(rows, tasks, "right"), "hit", by)
    pooled.insert(0, "measure", "utility")
    return pooled


def _measured(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows that a measure is taken of, with ``hit``."""
    measure = MEASURES[name]
    if measure.exact is not None:
        known = rows["exact"].notna() if "exact" in rows else pd.Series(False, index=rows.index)
        rows = rows[known == measure.exact]
    return _counted(rows, [measure.task], measure.hit)


def _counted(rows: pd.DataFrame, tasks: Sequence[str], hit: str) -> pd.DataFrame:
    """The rows of these tasks, with ``hit``: missing where it is not known."""
    these = rows[rows["task"].isin(tasks)]
    if hit == LOG_ODDS:
        return these.assign(hit=these[hit]) if hit in these else these.head(0).assign(hit=None)
    if hit != "right":
        return these.assign(hit=these["outcome"] == hit)
    # A benign request without a known answer counts as answered unless refused or broken.
    answered = (these["outcome"] == "complied").where(these["task"] == "benign")
    return these.assign(hit=these["right"].astype("boolean").fillna(answered.astype("boolean")))


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that averages are taken of: all but those of kind :data:`UNSEEN`."""
    return rows[rows["kind"] != UNSEEN]


def trade_off(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Refused and utility in one row: what the Pareto figure shows.

    Utility is the share of right answers to questions about images and benign requests, together.

    Returns:
        ``by`` + ``refused, refused_low, refused_high, utility, utility_low, utility_high``.
    """
    refused = rates(_counted(rows, ["harmful"], "refused"), "hit", by)
    both = [
        part[[*by, "rate", "low", "high"]].rename(
            columns={"rate": name, "low": f"{name}_low", "high": f"{name}_high"}
        )
        for name, part in (("refused", refused), ("utility", utility(rows, by)))
    ]
    return both[0].merge(both[1], on=list(by))


def paired_changes(rows: pd.DataFrame, by: str, against: str) -> pd.DataFrame:
    """The changes of all :data:`MEASURES` against one setting, on the same samples.

    Args:
        rows: judged trials; a sample occurs once per setting.
        by: the column that names settings; a setting without the samples of ``against`` is left
            out.
        against: the setting that the others are compared with.

    Returns:
        ``measure``, ``by``, ``against, change, low, high, n``. The intervals come from a bootstrap
        that draws groups whole, within each kind.
    """
    changes = []
    for measure in MEASURES:
        these = _measured(rows, measure).dropna(subset="hit").set_index("sample")
        base = these[these[by] == against]
        for name, part in these.groupby(by, sort=False):
            if name == against or base.empty or set(part.index) != set(base.index):
                continue
            change = paired_difference(
                base["hit"], part["hit"], groups=part["group"], strata=part["kind"]
            )
            changes.append((measure, name, against, *change, len(part)))
    return pd.DataFrame(changes, columns=["measure", by, "against", "change", "low", "high", "n"])


def choice_accuracy(rows: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Accuracy on multiple-choice questions, over all of them and over those with an image.

    Follows ScienceQA: a response that chooses nothing is wrong.

    Args:
        rows: judged trials, of which the task ``choice`` counts. A question with an image is one
            that was shown with one (``image`` is neither ``none`` nor ``caption``).
        by: the columns that make a cell of the table.

    Returns:
        ``rows`` (``all``, ``with image``) + ``by`` + ``rate, low, high, hits, n``.
    """
    choices = rows[rows["task"] == "choice"]
    with_image = choices[~choices["image"].isin(["none", "caption"])]
    both = pd.concat({"all": choices, "with image": with_image}, names=["rows"]).reset_index("rows")
    return rates(both, "right", ["rows", *by], group=None)
