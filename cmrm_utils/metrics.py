"""Rates with intervals, separability of states, utility scores."""

from collections.abc import Iterable, Sequence
from math import sqrt

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, silhouette_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

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


def clustered_interval(hits: ArrayLike, groups: Sequence[object]) -> tuple[float, float]:
    """A Wilson interval whose sample size allows for clusters of like items.

    The effective size is n over the design effect: the variance of the rate between clusters
    (linearised, with the small-sample factor) over that of independent items; never above n.
    """
    y = np.asarray(hits, dtype=float)
    n, p = len(y), float(y.mean())
    sums = pd.Series(y - p).groupby(list(groups)).sum().to_numpy()
    effective = float(n)
    if 0 < p < 1 and len(sums) > 1:
        variance = float((sums**2).sum()) / n**2 * len(sums) / (len(sums) - 1)
        effective = min(n, p * (1 - p) / variance) if variance > 0 else n
    return wilson(p * effective, effective)


def rates(
    rows: pd.DataFrame, hit: str, by: Sequence[str], *, group: str | None = "group"
) -> pd.DataFrame:
    """Rates of a true-or-false column with counts and 95% intervals.

    Args:
        rows: one row a trial.
        hit: the column to average; rows where it is missing are left out.
        by: the columns that make a cell of the table, in order.
        group: the column of clusters; None for plain Wilson intervals.

    Returns:
        ``by`` + ``rate, low, high, hits, n``, rates as shares from 0 to 1.
    """
    found = []
    kept = rows[rows[hit].notna()]
    for key, cell in kept.groupby(list(by), sort=False, dropna=False):
        y = cell[hit].astype(float)
        spread = clustered_interval(y, cell[group].tolist()) if group else wilson(y.sum(), len(y))
        names = key if isinstance(key, tuple) else (key,)
        found.append((*names, y.mean(), *spread, int(y.sum()), len(y)))
    return pd.DataFrame(found, columns=[*by, "rate", "low", "high", "hits", "n"])


def percent(row: pd.Series) -> str:
    """A rate as it is printed: ``12.3% [8.0, 18.4] (20/163)``."""
    return (
        f"{row['rate']:.1%} [{100 * row['low']:.1f}, {100 * row['high']:.1f}] "
        f"({row['hits']}/{row['n']})"
    )


def paired_difference(
    first: pd.Series, second: pd.Series, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of ``second - first`` on the same samples, with its 95% bootstrap interval.

    Args:
        first: true or false by sample id.
        second: the same samples under the other condition.
        draws: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: the two are not about the same samples.
    """
    if set(first.index) != set(second.index):
        raise ValueError("a paired comparison needs the same samples on both sides")
    change = (second.astype(float) - first.astype(float).reindex(second.index)).to_numpy()
    rng = np.random.default_rng(seed)
    means = change[rng.integers(0, len(change), (draws, len(change)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(change.mean()), float(low), float(high)


def pca_map(states: NDArray, fit_on: NDArray | None = None) -> NDArray[np.float64]:
    """Two principal components of hidden states ``(n, hidden)``, axes from ``fit_on`` if given."""
    pca = PCA(n_components=2, random_state=0).fit(states if fit_on is None else fit_on)
    return pca.transform(states)


def separability(
    first: NDArray, second: NDArray, *, folds: Sequence[int] | None = None
) -> dict[str, float]:
    """How far apart two sets of states ``(n, hidden)`` are.

    Args:
        first: one set.
        second: the other.
        folds: 0 (train) or 1 (held out) for each state of both; by default every other one.

    Returns:
        ``silhouette`` (-1 to 1), ``probe`` (accuracy of a linear probe on held-out states),
        and ``distance`` (between the means, over the mean norm).
    """
    states = np.concatenate([first, second])
    labels = np.array([0] * len(first) + [1] * len(second))
    held = np.array(folds if folds is not None else [i % 2 for i in range(len(states))], bool)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    probe.fit(states[~held], labels[~held])
    gap = np.linalg.norm(first.mean(0) - second.mean(0)) / np.linalg.norm(states, axis=1).mean()
    return {
        "silhouette": float(silhouette_score(states, labels)),
        "probe": float(probe.score(states[held], labels[held])),
        "distance": float(gap),
    }


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's word n-grams that occurred before in it, 0 to 1."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def agreement(first: Iterable[str], second: Iterable[str]) -> dict[str, float]:
    """Share of equal verdicts of two judges, and Cohen's kappa (NaN if both are constant)."""
    a, b = list(first), list(second)
    constant = len(set(a) | set(b)) == 1
    return {
        "n": len(a),
        "agreement": float(np.mean([x == y for x, y in zip(a, b, strict=True)])),
        "kappa": float("nan") if constant else float(cohen_kappa_score(a, b)),
    }


def choose_alpha(curve: pd.DataFrame, *, most_lost: float = 0.02) -> float:
    """The alpha with the lowest unsafe rate that loses at most so much utility.

    Args:
        curve: columns ``alpha, unsafe, utility``, one row an alpha, 0 among them.
        most_lost: utility that may be lost against alpha 0, as a share.

    Returns:
        The alpha; of equally safe ones the smallest.
    """
    base = curve.loc[curve["alpha"] == 0, "utility"].item()
    allowed = curve[curve["utility"] >= base - most_lost - 1e-9]
    return float(allowed.sort_values(["unsafe", "alpha"])["alpha"].iloc[0])
