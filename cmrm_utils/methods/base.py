"""What methods share."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from cmrm_utils.edits import Edit, Tokens
from cmrm_utils.errors import InputError
from cmrm_utils.vectors import ShiftVectors

Layers = Literal["all", "late"] | Iterable[int]
"""Decoder layers to edit, counted from 0; ``late``: from the middle on."""


def adding(
    vectors: ShiftVectors,
    alpha: float,
    *,
    layers: Layers,
    tokens: Tokens,
    name: str,
    sign: float = 1.0,
) -> Edit:
    """``h + sign * alpha * v`` at each chosen layer; edits of the same vectors share a tensor."""
    alpha = finite(alpha)
    chosen = chosen_layers(layers, vectors.values.shape[-2])
    settings = settings_of(name, alpha, tokens, layers, chosen)
    return Edit(
        vectors.only_at(chosen),
        tokens,
        vectors.sample_ids,
        settings,
        place=vectors.place,
        strength=sign * alpha,
    )


def finite(alpha: float) -> float:
    """A strength as a float.

    Raises:
        InputError: it is not finite.
    """
    if not abs(float(alpha)) < float("inf"):
        raise InputError(f"alpha must be a finite number, not {alpha}")
    return float(alpha)


def chosen_layers(layers: Layers, count: int) -> list[int]:
    """The numbers of the layers, of ``count``.

    Raises:
        InputError: there is no such layer.
    """
    if isinstance(layers, str):
        return list(range(count // 2 if layers == "late" else 0, count))
    chosen = sorted(set(layers))
    if outside := [layer for layer in chosen if not 0 <= layer < count]:
        raise InputError(f"layers {outside} are outside 0 to {count - 1}")
    return chosen


def settings_of(
    name: str, alpha: float, tokens: Tokens, layers: Layers, chosen: Sequence[int]
) -> dict[str, str | float]:
    """How an edit was made, as columns for tables."""
    return {
        "method": name,
        "alpha": alpha,
        "tokens": tokens,
        "layers": "all" if layers == "all" else ",".join(map(str, chosen)),
    }


def only_named(method: str) -> Edit:
    """No edit, under a method's name: tables then show what a changed prompt belongs to."""
    return Edit(torch.zeros(1, 1), settings={"method": method})


def dose(edit: Edit, states: Tensor) -> Tensor:
    """``|alpha v| / |h|`` per layer: how large what an edit adds is beside what it is added to.

    What it projects out is not counted.

    Args:
        edit: an edit; of a sample-level one the mean norm counts.
        states: hidden states ``(trials, layers, hidden)``; their mean norm counts.

    Returns:
        float32 ``(layers,)``.
    """
    size = edit.added.norm(dim=-1)
    return (size if size.ndim == 1 else size.mean(0)) / states.norm(dim=-1).mean(0)
