"""Methods, each a few lines that make an :class:`Edit` of vectors and a strength."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from cmrm_utils.errors import InputError
from cmrm_utils.hooks import Edit, Tokens
from cmrm_utils.vectors import ShiftVectors


def CMRM(
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
    settings: dict[str, str | float] = {
        "method": name or f"CMRM {vectors.level}",
        "alpha": alpha,
        "tokens": tokens,
        "layers": "all" if layers == "all" else ",".join(map(str, chosen)),
    }
    return Edit(add, tokens, vectors.sample_ids, settings)


def ways(vectors: ShiftVectors, alphas: Iterable[float]) -> list[Edit]:
    """The shift as published, and each layer's own share of it; on all tokens, and the last on."""
    variants: list[tuple[str, ShiftVectors, Tokens]] = [
        ("v, all tokens", vectors, "all"),
        ("v, from the last token on", vectors, "last"),
        ("u, all tokens", vectors.increments(), "all"),
        ("u, from the last token on", vectors.increments(), "last"),
    ]
    strengths = list(alphas)
    return [CMRM(v, a, tokens=t, name=name) for name, v, t in variants for a in strengths]


def controls(
    vectors: ShiftVectors, alpha: float, *, refusal: ShiftVectors, benign: ShiftVectors
) -> list[Edit]:
    """CMRM beside what it must be told from, all at one alpha.

    Args:
        vectors: the dataset-level shift v of harmful anchors.
        alpha: strength.
        refusal: the refusal direction (harmful minus benign, text only).
        benign: the shift of benign anchors.
    """
    against = refusal.scaled_like(vectors).scaled(-1.0)  # an edit subtracts: this adds refusal
    tests = {
        "CMRM": vectors,
        "negated": vectors.scaled(-1.0),
        **{f"random {seed}": vectors.random(seed) for seed in range(3)},
        "layers permuted": vectors.permuted(0),
        "refusal direction": against,
        "v without refusal": vectors.without(refusal),
        "v without refusal, at v's norm": vectors.without(refusal).scaled_like(vectors),
        "v, refusal part only": vectors.only(refusal),
        "benign anchors": benign,
        "benign anchors, at v's norm": benign.scaled_like(vectors),
    }
    return [
        *(CMRM(test, alpha, name=name) for name, test in tests.items()),
        CMRM(vectors, alpha, tokens="last", name="CMRM, last token on"),
    ]


def dose(edit: Edit, states: Tensor) -> Tensor:
    """``|alpha v| / |h|`` per layer: how large an edit is beside what it is added to.

    Args:
        edit: an edit; of a sample-level one the mean norm counts.
        states: hidden states ``(trials, layers, hidden)``; their mean norm counts.

    Returns:
        float32 ``(layers,)``.
    """
    size = edit.add.norm(dim=-1)
    return (size if size.ndim == 1 else size.mean(0)) / states.norm(dim=-1).mean(0)
