"""Notebook 08: CMRM with one thing changed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from random import Random
from typing import Any

import numpy as np

from cmrm_utils.edits import Place, Tokens
from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import Layers
from cmrm_utils.models import VLM
from cmrm_utils.vectors import Level, ShiftVectors

KINDS: tuple[Tokens, ...] = ("image", "text", "last prompt", "prompt", "generated", "last", "all")
"""The kinds of token that an edit is kept to, one after another."""


PARTS: dict[str, Callable[..., ShiftVectors]] = {
    "first k": ShiftVectors.only,
    "without them": ShiftVectors.without,
    "without them, at v's norm": lambda v, direction: v.without(direction).scaled_like(v),
}
"""What :func:`rank_variants` keeps of the shift, given its first k components."""


UNDONE = 1.0
"""The alpha that takes a shift away as a whole, where it was taken."""


LEVELS: tuple[Level, ...] = ("sample", "dataset")


Head = tuple[int, int]
"""Layer and head, both counted from 0."""


@dataclass(frozen=True, eq=False)
class Variant:
    """CMRM with one thing changed.

    Attributes:
        name: no other variant of a section has it.
        level: of the shift.
        place: where in a layer.
        layers: which.
        tokens: which.
        part: what of the vectors is used; all of them by default.
        labels: columns of the tables that it is in.
        like: by which variant's name its alpha is chosen; None for its own.
    """

    name: str
    level: Level
    place: Place = "layer"
    layers: Layers = "all"
    tokens: Tokens = "all"
    part: Callable[[ShiftVectors], ShiftVectors] = lambda vectors: vectors
    labels: Mapping[str, Any] = field(default_factory=dict)
    like: str | None = None


Setting = tuple[Variant, float]
"""A variant, and the alpha at which it is tried."""


def with_alphas(variants: Iterable[Variant], alphas: float | Mapping[str, float]) -> list[Setting]:
    """Variants at one alpha, or each at that chosen for it."""
    return [
        (v, alphas[v.like or v.name] if isinstance(alphas, Mapping) else alphas) for v in variants
    ]


def full_variants() -> list[Variant]:
    """The edit that the others differ from, of both levels: every layer, every token."""
    return [Variant(level, level, labels={"level": level}) for level in LEVELS]


def marked(layers: int, most: int = 8) -> list[int]:
    """Evenly spaced layers, the first and the last among them: all where there are few."""
    return sorted({round(float(at)) for at in np.linspace(0, layers - 1, min(layers, most))})


def layer_variants(level: Level, layers: int, most: int = 8) -> list[Variant]:
    """One layer alone, the layers from it on, and up to it; at most so many such layers."""
    variants = []
    for at in marked(layers, most):
        sets = {"alone": [at], "from it on": range(at, layers), "up to it": range(at + 1)}
        for name, chosen in sets.items():
            labels = {"set": name, "layer": at}
            variants.append(Variant(f"{name} {at}", level, layers=tuple(chosen), labels=labels))
    return variants


def token_variants(level: Level) -> list[Variant]:
    """Every layer, one kind of token: :data:`KINDS`."""
    return [Variant(kind, level, tokens=kind, labels={"layer": "all"}) for kind in KINDS]


def grid_variants(level: Level, layers: int, most: int = 8) -> list[Variant]:
    """One layer alone and one kind of token; sums of kinds that are shown are left out."""
    return [
        Variant(f"{kind} {at}", level, layers=(at,), tokens=kind, labels={"layer": str(at)})
        for kind in KINDS
        if kind not in ("prompt", "last")
        for at in marked(layers, most)
    ]


def head_variants(
    level: Level,
    vlm: VLM,
    order: Sequence[Head],
    counts: Iterable[int],
    *,
    draws: int | None = None,
) -> list[Variant]:
    """The first few heads of an order, and all; with ``draws``, as many at random instead.

    At the last prompt token, where the shift was taken.

    Raises:
        InputError: ``draws`` below 1.
    """
    if draws is not None and draws < 1:
        raise InputError(f"the number of random draws must be at least 1, not {draws}")

    def variant(chosen: Sequence[Head], **labels: Any) -> Variant:
        name, like = " ".join(map(str, labels.values())), f"top {labels['k']}"
        part = partial(ShiftVectors.heads, pairs=chosen, size=vlm.head_size)
        return Variant(name, level, "heads", "all", "last prompt", part, labels, like)

    few = [count for count in counts if count < len(order)]
    if draws is not None:
        return [
            variant(Random(f"{k}/{draw}").sample(order, k), heads="random", k=k, draw=draw)
            for k in few
            for draw in range(draws)
        ]
    return [variant(order[:k], heads="top", k=k) for k in (*few, len(order))]


def mlp_variants(level: Level, layers: int, most: int = 8) -> list[Variant]:
    """The MLPs of all layers, and of one alone; at the last prompt token."""
    chosen: dict[str, Layers] = {"all": "all", **{str(at): (at,) for at in marked(layers, most)}}
    return [
        Variant(f"MLP {name}", level, "mlp", at, "last prompt", labels={"layers edited": name})
        for name, at in chosen.items()
    ]


def rank_variants(
    levels: Iterable[Level], directions: ShiftVectors, ranks: Iterable[int]
) -> list[Variant]:
    """The shift kept to its first few principal components, and what is left (:data:`PARTS`).

    Args:
        levels: of the shift.
        directions: :func:`cmrm_utils.vectors.principal_directions`.
        ranks: how many.
    """

    def variant(level: Level, k: int, part: str) -> Variant:
        first, labels = directions.first(k), {"level": level, "part": part, "components": k}
        take = partial(PARTS[part], direction=first)
        return Variant(f"{level} {part} {k}", level, part=take, labels=labels, like=level)

    return [variant(*one) for one in product(levels, ranks, PARTS)]
