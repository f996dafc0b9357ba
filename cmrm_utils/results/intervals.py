"""Intervals of rates, of differences, of correlations."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata


def area_under_curve(rows: pd.DataFrame, draws: int) -> tuple[float, float, float]:
    """Area under the curve with its interval; NaN where all count, or none."""
    if rows["hit"].nunique() < 2:
        return (float("nan"),) * 3
    hit, cosine = rows["hit"].to_numpy(), rows["cosine"].to_numpy()
    places = clusters(rows["group"].tolist(), rows["kind"].tolist())
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(draws):
        drawn = np.concatenate(
            [some[i] for some in places for i in rng.integers(0, len(some), len(some))]
        )
        if 0 < hit[drawn].mean() < 1:
            areas.append(_auc(hit[drawn], cosine[drawn]))
    low, high = np.quantile(areas, [0.025, 0.975]) if areas else (float("nan"),) * 2
    return _auc(hit, cosine), float(low), float(high)


def _auc(hit: NDArray, score: NDArray) -> float:
    """By ranks: much quicker than scikit-learn's on few samples."""
    count = hit.sum()
    above = pd.Series(score).rank().to_numpy()[hit].sum() - count * (count + 1) / 2
    return float(above / (count * (len(hit) - count)))


Z = 1.959963984540054
"""The normal quantile of a 95% interval."""


def wilson(hits: float, n: float) -> tuple[float, float]:
    """The 95% Wilson score interval of ``hits`` out of ``n`` (n may be an effective size).

    Raises:
        ValueError: no trials, or hits outside 0 to n.
    """
    if n <= 0 or not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    p, z2 = hits / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_interval(
    hits: ArrayLike, groups: Sequence[object], strata: Sequence[object] | None = None
) -> tuple[float, float]:
    """A Wilson interval whose sample size allows for clusters of like items and for fixed strata.

    The effective size is n over the design effect: the variance of the rate between clusters
    (linearised, with the small-sample factor) over that of independent items; never above n. How
    strata differ is fixed by design and no variance: a cluster varies about its stratum's rate,
    and one that reaches over several strata about the rates of all of them together. Where all or
    none of the items of every stratum are hits there is no variance to compare, and n counts
    whole: such an interval is too narrow if like items are alike.

    Args:
        hits: true or false, one an item.
        groups: which cluster each item belongs to.
        strata: which stratum; None for a single one.
    """
    items = pd.DataFrame({"y": np.asarray(hits, dtype=float), "group": list(groups)})
    named = ["all"] * len(items) if strata is None else list(map(str, strata))
    by_stratum = items.groupby(named)["y"]
    rest = items["y"] - by_stratum.transform("mean")
    sums = rest.groupby(items["group"], dropna=False).sum().to_numpy()
    n, p, free = len(items), float(items["y"].mean()), len(sums) - by_stratum.ngroups
    effective = float(n)
    if 0 < p < 1 and free > 0:
        variance = float((sums**2).sum()) / n**2 * len(sums) / free
        effective = min(n, p * (1 - p) / variance) if variance > 0 else n
    return wilson(p * effective, effective)


def paired_difference(
    first: pd.Series,
    second: pd.Series,
    *,
    groups: pd.Series | None = None,
    strata: pd.Series | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of ``second - first`` on the same samples, with its 95% bootstrap interval.

    Args:
        first: true or false by sample id.
        second: the same samples under the other condition.
        groups: clusters of like samples, by sample id, which are then drawn whole; None: samples.
        strata: kinds of sample, by sample id, each drawn as often as it occurs; None: one kind. A
            cluster that reaches over kinds is drawn among those that reach over the same ones.
        draws: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: the two are not about the same samples.
    """
    if set(first.index) != set(second.index):
        raise ValueError("a paired comparison needs the same samples on both sides")
    change = second.astype(float) - first.astype(float).reindex(second.index)
    ids = change.index
    own = ids if groups is None else groups.reindex(ids)
    kinds = [""] * len(ids) if strata is None else strata.reindex(ids)
    values = change.to_numpy()
    rng = np.random.default_rng(seed)
    drawn = np.zeros((draws, 2))
    for some in clusters(list(own), list(kinds)):
        sums = np.array([(values[places].sum(), len(places)) for places in some])
        drawn += sums[rng.integers(0, len(some), (draws, len(some)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(change.mean()), float(low), float(high)


def clusters(groups: Sequence[object], strata: Sequence[object]) -> list[list[NDArray]]:
    """The places of the items of each cluster, by the strata that the cluster reaches over.

    A bootstrap draws clusters whole, and within each of these lists.

    Args:
        groups: which cluster each item belongs to.
        strata: which stratum.
    """
    items = pd.DataFrame({"group": list(groups), "stratum": list(map(str, strata))})
    reach: dict[tuple[str, ...], list[NDArray]] = {}
    for places in items.groupby("group", sort=False, dropna=False).indices.values():
        over = tuple(sorted(set(items["stratum"].iloc[places])))
        reach.setdefault(over, []).append(places)
    return list(reach.values())


def rank_correlation(
    first: ArrayLike, second: ArrayLike, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's rank correlation of two columns, with its 95% bootstrap interval over rows.

    NaN where a column has one value alone; draws of which that is true are left out.

    Args:
        first: one value a row.
        second: the other.
        draws: bootstrap resamples.
        seed: of the resampling.
    """
    values = np.array([first, second], dtype=float)
    rng = np.random.default_rng(seed)
    drawn = values[:, rng.integers(0, values.shape[1], (draws, values.shape[1]))]
    found = _correlations(rankdata(drawn, axis=-1))
    whole = float(_correlations(rankdata(values, axis=-1)))
    if np.isnan(found).all():
        return whole, float("nan"), float("nan")
    low, high = np.nanquantile(found, [0.025, 0.975])
    return whole, float(low), float(high)


def _correlations(ranks: NDArray) -> NDArray:
    centred = ranks - ranks.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).sum(-1)).prod(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (centred[0] * centred[1]).sum(-1) / np.where(spread > 0, spread, np.nan)
