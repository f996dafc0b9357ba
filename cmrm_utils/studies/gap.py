"""Notebook 01: how far apart states are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmrm_utils.conditions import CONDITIONS
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial, grid


def trials(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """01: every image condition."""
    yield grid(nb.samples("validation", p["n"], "harmful", "benign"), images=CONDITIONS)


def separability(first: NDArray, second: NDArray) -> dict[str, float]:
    """How far apart two sets of states ``(n, hidden)`` are.

    Every other state of each set is held out from the probe; give samples in the same order in
    both sets, and no sample is on both sides.

    Returns:
        ``silhouette`` (-1 to 1), ``probe`` (accuracy of a linear probe on held-out states),
        and ``distance`` (between the means, over the mean norm).
    """
    states = np.concatenate([first, second])
    labels = np.array([0] * len(first) + [1] * len(second))
    held = np.concatenate([np.arange(len(first)), np.arange(len(second))]) % 2 == 1
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    probe.fit(states[~held], labels[~held])
    gap = np.linalg.norm(first.mean(0) - second.mean(0)) / np.linalg.norm(states, axis=1).mean()
    return {
        "silhouette": float(silhouette_score(states, labels)),
        "probe": float(probe.score(states[held], labels[held])),
        "distance": float(gap),
    }


def layer_separability(first: NDArray, second: NDArray) -> pd.DataFrame:
    """:func:`separability` of two sets ``(n, layers, hidden)`` at each layer, one row a layer."""
    layers = range(first.shape[1])
    rows = [separability(first[:, layer], second[:, layer]) for layer in layers]
    return pd.DataFrame(rows).rename_axis("layer").reset_index()


def layer_maps(
    states: NDArray, labels: pd.DataFrame, layers: Sequence[int], fit_on: NDArray | None = None
) -> pd.DataFrame:
    """Two principal components of the states at some layers, beside their labels.

    Args:
        states: ``(n, layers, hidden)``.
        labels: one row a state.
        layers: which ones to map.
        fit_on: true for the states that the axes are fitted on; by default all.

    Returns:
        ``labels`` + ``layer, pc1, pc2, share1, share2``, one row a state and layer; the shares are
        those of the variance, of the states that the axes are fitted on.
    """
    parts = []
    for layer in layers:
        here = states[:, layer]
        pca = PCA(n_components=2, random_state=0).fit(here if fit_on is None else here[fit_on])
        pc1, pc2 = pca.transform(here).T
        first, second = pca.explained_variance_ratio_
        axes = {"pc1": pc1, "pc2": pc2, "share1": first, "share2": second}
        parts.append(labels.assign(layer=layer, **axes))
    return pd.concat(parts, ignore_index=True)
