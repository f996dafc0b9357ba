"""What the stored tables of three seeds say: the numbers in the verdicts of notebooks 01 to 05."""

from functools import cache

import pandas as pd

from cmrm_utils.studies.appendix import stored


@cache
def _stored(name: str) -> pd.DataFrame:
    return stored(f"smollm2_{name}")


def of_test(setting: str, measure: str = "refused") -> str:
    """A rate of harmful requests of the test split, three seeds together, with its interval.

    Args:
        setting: such as ``own image`` or ``CMRM dataset``.
        measure: of harmful requests.
    """
    rows = _stored("headline")
    these = rows[(rows["setting"] == setting) & (rows["measure"] == measure)]
    row = these[these["requests"] == "harmful"].iloc[0]
    interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{row['rate']:.1%} {interval} of {row['n']:.0f}"


def swept(measure: str, alpha: float, method: str = "CMRM dataset") -> str:
    """A rate of the validation split at an alpha, counts of three seeds added up.

    Args:
        measure: such as ``refused``.
        alpha: one of those stored.
        method: such as ``CMRM dataset``.
    """
    rows = _stored("curves")
    these = rows[(rows["measure"] == measure) & (rows["method"] == method)]
    hits, n = these.loc[these["alpha"] == alpha, ["hits", "n"]].sum()
    return f"{hits / n:.1%} of {n:.0f}"


def kept(measure: str, setting: str) -> str:
    """A rate of the test split, counts of three seeds and all kinds added up.

    Args:
        measure: such as ``visual questions``.
        setting: such as ``own image`` or ``CMRM dataset``.
    """
    rows = _stored("test")
    these = rows[(rows["measure"] == measure) & (rows["setting"] == setting)]
    hits, n = these[["hits", "n"]].sum()
    return f"{hits / n:.1%} of {n:.0f}"


def refusal_cosine() -> str:
    """The cosine of v with the refusal direction, over the layers (means of three seeds)."""
    rows = _stored("cosines")
    values = rows[rows["vector"] == "harmful anchors"].groupby("layer")["cosine"].mean()
    return f"{values.mean():+.2f} on average, {values.min():+.2f} to {values.max():+.2f}"


def controlled(measure: str, method: str) -> str:
    """A rate of the validation split under a control of notebook 03, counts of three seeds.

    Args:
        measure: such as ``refused``.
        method: a control's name.
    """
    rows = _stored("controls")
    these = rows[(rows["measure"] == measure) & (rows["method"] == method)]
    hits, n = these[["hits", "n"]].sum()
    return f"{hits / n:.1%} of {n:.0f}"
