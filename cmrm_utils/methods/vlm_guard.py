"""VLM-Guard (arXiv 2502.10486)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cmrm_utils.edits import Edit, Tokens
from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import (
    Anchors,
    Layers,
    Make,
    Method,
    cached_vectors,
    chosen_layers,
    each,
    edited,
    finite,
    samples_of,
    settings_of,
)
from cmrm_utils.models import VLM
from cmrm_utils.sample import Sample
from cmrm_utils.store import hashed
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors, leading_directions


def VLMGuard(
    directions: ShiftVectors,
    readings: ShiftVectors,
    alpha: float,
    *,
    ungated: Literal["projected", "left"] = "projected",
    layers: Layers = "all",
    tokens: Tokens = "last",
) -> Edit:
    """VLM-Guard (arXiv 2502.10486): give a state the safety part of its query's text state.

    ``h - V V'h``, and where the gate is on ``+ alpha V V'q``: q is the state of the same query
    without its image, V what harmful and benign text differ along. The gate is on where q
    projects positively on the first direction, which points to harm. With ``alpha`` 0 nothing is
    put back: what speaks for a refusal is taken out, and what speaks against it.

    We know the method from descriptions of the paper, not from its code. They leave open what
    becomes of a state whose gate is off: it may be projected, with nothing put back, or left alone.
    Both are here. These choices are ours: the gate is read layer by layer, its threshold is 0; the
    number of directions and alpha; all layers; the tokens from the last of the prompt on.

    Args:
        directions: V (:func:`cmrm_utils.methods.vlm_guard.difference_directions`).
        readings: q, of the samples to be edited (:func:`cmrm_utils.methods.vlm_guard.text_states`).
        alpha: strength of what is put back.
        ungated: what becomes of a state whose gate is off.
        layers: decoder layers to edit.
        tokens: which tokens.
    """
    alpha = finite(alpha)
    chosen = chosen_layers(layers, directions.values.shape[-2])
    along = torch.einsum("slh,mlh->slm", readings.values, directions.values)
    own = torch.einsum("slm,mlh->slh", along, directions.values)
    on = along[..., :1] > 0
    add, project = torch.zeros_like(own), torch.zeros_like(directions.values)
    add[:, chosen] = (alpha * own * on)[:, chosen]
    project[:, chosen] = directions.values[:, chosen]
    project = project.transpose(0, 1)  # layers, directions, hidden
    if ungated == "left":
        project = project * on[..., None]
    settings = {**settings_of("VLM-Guard", alpha, tokens, layers, chosen), "ungated": ungated}
    return Edit(add, tokens, readings.sample_ids, settings, project.contiguous())


def difference_directions(
    vlm: VLM,
    harmful: Sequence[Sample],
    benign: Sequence[Sample],
    count: int,
    *,
    path: Path | None = None,
) -> ShiftVectors:
    """Along which harmful requests differ most from benign ones: VLM-Guard's V, text only.

    The top right singular vectors of the differences of pairs, at the last prompt token, not
    centred, each turned so that the mean difference has no negative part along it. Requests are
    paired in their order; those left over are not used.

    Args:
        vlm: the model.
        harmful: anchors that must be refused.
        benign: anchors that must be answered.
        count: how many directions a layer.
        path: where it is kept, and taken from if it is there.

    Returns:
        Orthonormal directions ``(count, layers, hidden)``, the greatest first.

    Raises:
        InputError: fewer pairs, or a smaller state, than directions; ``path`` holds other vectors.
    """
    pairs = min(len(harmful), len(benign))
    if not 0 < count <= min(pairs, vlm.hidden_size):
        raise InputError(
            f"{count} directions of {pairs} pairs of anchors and states of {vlm.hidden_size}"
        )
    trials = [Trial(sample, "none") for sample in (*harmful[:pairs], *benign[:pairs])]

    def leading(states: Tensor) -> Tensor:
        return leading_directions(states[:pairs].double() - states[pairs:], count)

    return cached_vectors(vlm, trials, "differences", leading, path=path, count=str(count))


def text_states(vlm: VLM, samples: Sequence[Sample]) -> ShiftVectors:
    """Each sample's state without its image, at the last prompt token: what a gate reads.

    Raises:
        InputError: two samples of one id.
    """
    ids = tuple(sample.id for sample in samples)
    trials = [Trial(sample, "none") for sample in samples]
    return cached_vectors(vlm, trials, "text states", Tensor.float, ids=ids, samples=hashed(ids))


def _prepare(anchors: Anchors, trials: Sequence[Trial]) -> Make:
    readings = text_states(anchors.vlm, samples_of(trials))
    pairs = (anchors.harmful, anchors.benign)

    def make(m: int, **setting: Any) -> list[Trial]:
        m = min(m, *map(len, pairs))  # a small set has no more pairs to differ
        path = anchors.path(f"differences_{m}")
        directions = difference_directions(anchors.vlm, *pairs, m, path=path)
        return edited(trials, VLMGuard(directions, readings, **setting))

    return make


METHOD = Method(
    _prepare,
    [
        *each(ungated=["left"], m=[1], alpha=[1.0, 1.5]),
        {"ungated": "projected", "m": 1, "alpha": 1.5},
    ],
)
