"""Methods, each a few lines that make an :class:`Edit` of vectors and a strength."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from cmrm_utils.errors import InputError
from cmrm_utils.hooks import Edit, Tokens
from cmrm_utils.vectors import ShiftVectors


def CMRM(  # noqa: N802 - the method's name in the paper
    vectors: ShiftVectors,
    alpha: float,
    *,
    layers: Literal["all"] | Iterable[int] = "all",
    tokens: Tokens = "all",
    name: str | None = None,
) -> Edit:
    """Cross-Modality Representation Manipulation: ``h - alpha * v`` at each chosen layer.

    Args:
        vectors: the shift v (arXiv 2410.09047, Eq. 6 with its sign mended).
        alpha: strength; 0 is no edit.
        layers: decoder layers to edit, counted from 0.
        tokens: ``all``, or ``last``: the last prompt token and every generated one.
        name: what tables call it; by default ``CMRM dataset`` or ``CMRM sample``.

    Raises:
        InputError: an alpha that is not finite, or a layer that the vectors do not have.
    """
    alpha = float(alpha)
    if not abs(alpha) < float("inf"):
        raise InputError(f"alpha must be a finite number, not {alpha}")
    count = vectors.values.shape[-2]
    chosen = range(count) if layers == "all" else sorted(set(layers))
    if outside := [layer for layer in chosen if not 0 <= layer < count]:
        raise InputError(f"layers {outside} are outside 0 to {count - 1}")
    add = torch.zeros_like(vectors.values)
    add[..., list(chosen), :] = -alpha * vectors.values[..., list(chosen), :]
    settings = {
        "method": name or f"CMRM {vectors.level}",
        "alpha": alpha,
        "tokens": tokens,
        "layers": "all" if layers == "all" else ",".join(map(str, chosen)),
    }
    return Edit(add, tokens, vectors.sample_ids, settings)


def dose(edit: Edit, states: Tensor) -> Tensor:
    """``|alpha v| / |h|`` per layer: how large an edit is beside what it is added to.

    Args:
        edit: a dataset-level edit.
        states: hidden states ``(trials, layers, hidden)``; their mean norm counts.

    Returns:
        float32 ``(layers,)``.
    """
    return edit.add.norm(dim=-1) / states.norm(dim=-1).mean(0)
