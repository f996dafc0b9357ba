"""Notebook 02: the shift vector."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cmrm_utils.vectors import ShiftVectors


def anchor_curve(differences: Tensor, *, sizes: Sequence[int], draws: int = 50) -> pd.DataFrame:
    """How near the mean shift of a few anchors is to that of all.

    Args:
        differences: of all anchors (:func:`shifts`), ``(anchors, layers, hidden)``.
        sizes: numbers of anchors; those above the number there is are left out.
        draws: random subsets of each size.

    Returns:
        ``anchors, cosine, low, high``: the mean over draws and layers, 5th and 95th percentile of
        the draws.
    """
    whole = differences.mean(0)
    generator = torch.Generator().manual_seed(0)
    rows = []
    count = len(differences)
    for size in (size for size in sizes if size <= count):
        chosen = [torch.randperm(count, generator=generator)[:size] for _ in range(draws)]
        means = torch.stack([differences[index].mean(0) for index in chosen])
        near = cosine_similarity(means, whole, dim=-1).mean(-1)
        low, high = near.quantile(torch.tensor([0.05, 0.95])).tolist()
        rows.append({"anchors": size, "cosine": float(near.mean()), "low": low, "high": high})
    return pd.DataFrame(rows)


def cosines_between(vectors: Mapping[str, ShiftVectors], layer: int = -1) -> pd.DataFrame:
    """Cosines of every two of some vectors at one layer, names as rows and columns."""
    return pd.DataFrame(
        {a: {b: float(x.cosine(y)[layer]) for b, y in vectors.items()} for a, x in vectors.items()}
    )
