"""How far two judges agree."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from sklearn.metrics import cohen_kappa_score

from cmrm_utils.results.rates import rates
from cmrm_utils.results.text import percent


def agreement(first: Iterable[str], second: Iterable[str]) -> dict[str, float]:
    """Number of verdicts ``n``, share of equal ones ``agreement``, and Cohen's ``kappa``.

    Kappa is NaN where both judges give the same verdict throughout. Without any verdicts, both
    figures are NaN.
    """
    a, b = pd.Series(list(first), dtype=object), pd.Series(list(second), dtype=object)
    differ = len({*a, *b}) > 1
    return {
        "n": len(a),
        "agreement": float((a == b).mean()),
        "kappa": float(cohen_kappa_score(a, b)) if differ else float("nan"),
    }


def judge_agreement(
    standard: pd.Series, verdicts: pd.Series, *, detects: str | None = None
) -> dict[str, Any]:
    """A judge's verdicts against a standard.

    Args:
        standard: outcomes.
        verdicts: the judge's, on the same responses; ``unknown`` agrees with no outcome.
        detects: the one outcome that a judge of two verdicts detects (``complied`` against
            ``not complied``); None for a judge of three outcomes, of which refusals are counted.

    Returns:
        ``n, agreement, kappa``; ``recall`` and ``false alarms`` of the detected outcome, as text
        with interval and counts; ``unknown``, a count.
    """
    if detects is not None:
        standard = standard.where(standard == detects, f"not {detects}")
    target = detects or "refused"
    there, alarms = standard == target, verdicts == target
    return {
        **agreement(standard, verdicts),
        "recall": _share(alarms[there]),
        "false alarms": _share(alarms[~there]),
        "unknown": int((verdicts == "unknown").sum()),
    }


def _share(hits: pd.Series) -> str:
    if hits.empty:
        return "none"
    return percent(rates(hits.to_frame("hit").assign(of="all"), "hit", ["of"], group=None).iloc[0])
