"""Intervals of rates, of differences, of correlations."""

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Z = 1.959963984540054
"""The normal quantile of a 95% interval."""


def wilson(hits: float, n: float) -> tuple[float, float]:
    """The 95% Wilson score interval of ``hits`` out of ``n`` (n may be an effective size).

    Raises:
        ValueError: there are no trials, or hits are outside 0 to n.
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
    """A Wilson interval whose sample size allows for clusters of similar items and for strata.

    The effective size is n over the design effect, and never above n. The design effect is the
    variance of the rate between clusters (linearised, with the small-sample factor) over that of
    independent items. How strata differ is fixed by design and adds no variance: a cluster varies
    about the rate of its stratum, and a cluster that spans several strata about all their rates
    together. Where all or none of the items of every stratum are hits, there is no variance to
    compare, and n counts in full: such an interval is too narrow if similar items behave alike.

    Args:
        hits: true or false, one per item.
        groups: the cluster of each item.
        strata: the stratum of each item; None for a single one.
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


def clusters(groups: Sequence[object], strata: Sequence[object]) -> list[list[NDArray]]:
    """The positions of the items of each cluster, in one list for each set of strata it spans.

    A bootstrap draws clusters whole, and within each of these lists.

    Args:
        groups: the cluster of each item.
        strata: the stratum of each item.
    """
    items = pd.DataFrame({"group": list(groups), "stratum": list(map(str, strata))})
    by_reach: dict[tuple[str, ...], list[NDArray]] = {}
    for positions in items.groupby("group", sort=False, dropna=False).indices.values():
        reach = tuple(sorted(set(items["stratum"].iloc[positions])))
        by_reach.setdefault(reach, []).append(positions)
    return list(by_reach.values())


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    groups: Sequence[object],
    strata: Sequence[object] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A statistic of some items with its 95% bootstrap interval: the one resampler of the module.

    Clusters are drawn whole, among those that span the same strata. Resamples for which the
    statistic is not finite (0 / 0, say) are left out; where no resample has a value, the interval
    is NaN.

    Args:
        statistic: takes how often each resample holds each item, ``(resamples, items)``, and
            returns a value per resample. ``counts @ values`` are the sums of ``values``.
        groups: the cluster of each item; ``range(n)`` to draw items independently.
        strata: the stratum of each item; None for a single one.
        draws: bootstrap resamples.
        seed: of the resampling.

    Returns:
        The statistic of the items themselves, and the 2.5% and 97.5% quantiles over resamples.

    Example:
        ``bootstrap(lambda counts: counts @ above / (counts @ below), range(len(above)))``
    """
    rng = np.random.default_rng(seed)
    counts = np.ones((1 + draws, len(groups)))  # the first row is the items themselves
    for some in clusters(groups, [""] * len(groups) if strata is None else strata):
        size = len(some)
        picks = rng.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
        times = np.bincount(picks.ravel(), minlength=draws * size).reshape(draws, size)
        lengths = [len(positions) for positions in some]
        counts[1:, np.concatenate(some)] = np.repeat(times, lengths, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole, *values = statistic(counts)
    finite = np.array(values)[np.isfinite(values)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    return float(whole) if np.isfinite(whole) else float("nan"), float(low), float(high)


def paired_difference(
    first: pd.Series,
    second: pd.Series,
    *,
    groups: pd.Series | None = None,
    strata: pd.Series | None = None,
) -> tuple[float, float, float]:
    """Mean of ``second - first`` on the same samples, with its 95% bootstrap interval.

    Args:
        first: true or false by sample id.
        second: the same samples under the other condition.
        groups: clusters of similar samples, by sample id, which are drawn whole; None: samples.
        strata: kinds of sample, by sample id, each drawn as often as it occurs; None: one kind.
            Clusters that span several kinds are drawn among those that span the same ones.

    Raises:
        ValueError: the two are not about the same samples.
    """
    if set(first.index) != set(second.index):
        raise ValueError("a paired comparison needs the same samples on both sides")
    change = second.astype(float) - first.astype(float).reindex(second.index)
    ids = change.index
    values = change.to_numpy()
    return bootstrap(
        lambda counts: counts @ values / counts.sum(1),
        list(ids if groups is None else groups.reindex(ids)),
        None if strata is None else list(strata.reindex(ids)),
    )


def area_under_curve(rows: pd.DataFrame, draws: int) -> tuple[float, float, float]:
    """Area under the ROC curve of ``cosine`` for ``hit``, with its 95% bootstrap interval.

    NaN where all rows are hits, or none is; resamples of which that is true are left out.

    Args:
        rows: columns ``hit`` (true or false), ``cosine``, ``group`` (clusters), ``kind`` (strata).
        draws: bootstrap resamples.
    """
    hit, cosine = (rows[name].to_numpy(dtype=float) for name in ("hit", "cosine"))

    def area(counts: NDArray) -> NDArray:
        hits = counts @ hit
        above = (counts * _ranks(cosine, counts)) @ hit - hits * (hits + 1) / 2
        return above / (hits * (counts.sum(1) - hits))

    return bootstrap(area, rows["group"].tolist(), rows["kind"].tolist(), draws=draws)


def _ranks(values: NDArray, counts: NDArray) -> NDArray:
    """Each value's rank in each resample, ties at their mean rank: (resamples, items)."""
    distinct, place = np.unique(values, return_inverse=True)
    times = np.zeros((len(counts), len(distinct)))
    np.add.at(times.T, place, counts.T)
    return (times.cumsum(1) - (times - 1) / 2)[:, place]
