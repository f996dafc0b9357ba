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
from cmrm_utils.vectors import ShiftVectors

KINDS: tuple[Tokens, ...] = ("image", "text", "last prompt", "prompt")
"""The kinds of prompt token that an edit is kept to, one after another."""


PARTS: dict[str, Callable[..., ShiftVectors]] = {
    "first k": ShiftVectors.only,
    "without them": ShiftVectors.without,
    "without them, at v's norm": lambda v, direction: v.without(direction).scaled_like(v),
}
"""What :func:`rank_variants` keeps of the shift, given its first k components."""


Head = tuple[int, int]
"""Layer and head, both counted from 0."""


@dataclass(frozen=True, eq=False)
class Variant:
    """CMRM with one thing changed.

    Attributes:
        name: no other variant of a section has it.
        place: where in a layer.
        layers: which.
        tokens: which.
        part: what of the vectors is used; all of them by default.
        labels: columns of the tables that it is in.
    """

    name: str
    place: Place = "layer"
    layers: Layers = "all"
    tokens: Tokens = "all"
    part: Callable[[ShiftVectors], ShiftVectors] = lambda vectors: vectors
    labels: Mapping[str, Any] = field(default_factory=dict)


def marked(layers: int, most: int = 8) -> list[int]:
    """Evenly spaced layers, the first and the last among them: all where there are few."""
    return sorted({round(float(at)) for at in np.linspace(0, layers - 1, min(layers, most))})


def layer_variants(layers: int, most: int = 8) -> list[Variant]:
    """One layer alone, the layers from it on, and up to it; at most so many such layers."""
    variants = []
    for at in marked(layers, most):
        sets = {"alone": [at], "from it on": range(at, layers), "up to it": range(at + 1)}
        for name, chosen in sets.items():
            labels = {"layers": name, "layer": at}
            variants.append(Variant(f"{name} {at}", layers=tuple(chosen), labels=labels))
    return variants


def token_variants() -> list[Variant]:
    """Every layer, one kind of token: :data:`KINDS`."""
    return [Variant(kind, tokens=kind, labels={"tokens": kind}) for kind in KINDS]


def head_variants(vlm: VLM, heads: Sequence[Head]) -> list[Variant]:
    """Each head alone, at the last prompt token, where the shift was taken."""
    return [_heads(vlm, [head], layer=head[0], head=head[1]) for head in heads]


def first_heads(
    vlm: VLM, order: Sequence[Head], counts: Iterable[int], *, draws: int
) -> list[Variant]:
    """The first few heads of an order, and all; and as many at random.

    Raises:
        InputError: ``draws`` below 0.
    """
    if draws < 0:
        raise InputError(f"the number of random draws must be at least 0, not {draws}")
    few = [count for count in counts if count < len(order)]
    first = [_heads(vlm, order[:k], heads="first", k=k, draw=0) for k in (*few, len(order))]
    random = [
        _heads(vlm, Random(f"{k}/{draw}").sample(order, k), heads="random", k=k, draw=draw)
        for k in few
        for draw in range(draws)
    ]
    return first + random


def _heads(vlm: VLM, chosen: Sequence[Head], **labels: Any) -> Variant:
    part = partial(ShiftVectors.heads, pairs=chosen, size=vlm.head_size)
    name = " ".join(f"{key} {value}" for key, value in labels.items())
    return Variant(name, "heads", "all", "last prompt", part, labels)


def place_variants(layers: int, most: int = 8) -> list[Variant]:
    """The shift of attention and MLPs, of all layers and of one alone; at the last prompt token."""
    places: dict[str, Place] = {"attention": "heads", "MLPs": "mlp"}
    chosen: dict[str, Layers] = {"all": "all", **{str(at): (at,) for at in marked(layers, most)}}
    return [
        Variant(f"{name} {which}", place, at, "last prompt", labels={"of": name, "layer": which})
        for name, place in places.items()
        for which, at in chosen.items()
    ]


def rank_variants(directions: ShiftVectors, ranks: Iterable[int]) -> list[Variant]:
    """The shift kept to its first few principal components, and what is left (:data:`PARTS`).

    Args:
        directions: :func:`cmrm_utils.vectors.principal_directions`.
        ranks: how many.
    """

    def variant(k: int, part: str) -> Variant:
        take = partial(PARTS[part], direction=directions.first(k))
        return Variant(f"{part} {k}", part=take, labels={"part": part, "components": k})

    return [variant(*one) for one in product(ranks, PARTS)]
