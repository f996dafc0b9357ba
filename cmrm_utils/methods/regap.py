"""A method inspired by ReGap (arXiv 2605.18104)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cmrm_utils.edits import Edit, Tokens, check_sample_ids
from cmrm_utils.engine.loops import hidden_states
from cmrm_utils.methods.base import (
    Anchors,
    Layers,
    Make,
    Method,
    adding,
    edited,
    finite,
    mean_state,
)
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.models import VLM
from cmrm_utils.sample import Sample
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors


def ReGap(
    drift: ShiftVectors,
    refusal: ShiftVectors,
    regained: Mapping[str, float],
    alpha: float,
    *,
    first: float,
    layers: Layers = "all",
    tokens: Tokens = "last",
) -> Edit:
    """Inspired by ReGap (arXiv 2605.18104), of which we know the abstract alone: not ReGap itself.

    ``h - first * v + alpha * w * r``: a correction against the modality drift v, the same for all
    samples, and then the refusal direction r, the stronger the more harmful the corrected state
    looks (w, from 0 to 1). The abstract says that countering the drift makes harm separable again,
    and that the harm then perceived sets each input's strength. The equation, w, and all defaults
    are ours.

    Args:
        drift: v (:func:`cmrm_utils.vectors.extract_shift`).
        refusal: r (:func:`cmrm_utils.vectors.refusal_direction`).
        regained: w by sample id (:func:`regained`, under the first correction,
            ``CMRM(drift, first, layers=layers, tokens=tokens)``).
        alpha: strength at w = 1.
        first: strength of the first correction.
        layers: decoder layers to edit.
        tokens: which tokens.
    """
    weights = torch.tensor([*regained.values()])[:, None, None]
    values = finite(alpha) * weights * refusal.values - finite(first) * drift.values
    every = ShiftVectors(values, tuple(regained))
    edit = adding(every, 1.0, layers=layers, tokens=tokens, name="ReGap-inspired")
    return replace(edit, settings={**edit.settings, "alpha": float(alpha), "first": float(first)})


def text_mean(vlm: VLM, samples: Sequence[Sample], *, path: Path | None = None) -> ShiftVectors:
    """Mean state of requests without their images, at the last prompt token.

    Args:
        vlm: the model.
        samples: the requests.
        path: where it is kept, and taken from if it is there.

    Raises:
        InputError: no samples; ``path`` holds other vectors.
    """
    return mean_state(vlm, [Trial(sample, "none") for sample in samples], "text mean", path=path)


def regained(
    vlm: VLM, trials: Sequence[Trial], first: Edit, *, harmful: ShiftVectors, benign: ShiftVectors
) -> dict[str, float]:
    """How far a first correction brings each sample back to where harmful text is.

    Its state along the line from the mean of benign to that of harmful requests (text only), 0 at
    the one and 1 at the other and beyond, averaged over layers.

    Args:
        vlm: the model.
        trials: whose states are read, under ``first``; one a sample.
        first: the correction.
        harmful: mean state of anchors that must be refused (:func:`text_mean`).
        benign: that of anchors that must be answered.

    Returns:
        From 0 to 1 by sample id.

    Raises:
        InputError: two trials are of one sample id.
    """
    ids = [trial.sample.id for trial in trials]
    check_sample_ids(ids)
    along = towards_harm(hidden_states(vlm, edited(trials, first)), harmful, benign)
    return dict(zip(ids, along.mean(-1).clamp(0, 1).tolist(), strict=True))


def towards_harm(states: Tensor, harmful: ShiftVectors, benign: ShiftVectors) -> Tensor:
    """How far states are along the line from benign (0) to harmful requests (1), layer by layer."""
    line = harmful.values - benign.values
    return ((states - benign.values) * line).sum(-1) / (line * line).sum(-1)


def _prepare(anchors: Anchors, trials: Sequence[Trial]) -> Make:
    v, r = anchors.shift(), anchors.refusal()
    means = {
        "harmful": text_mean(anchors.vlm, anchors.harmful, path=anchors.path("harmful_text")),
        "benign": text_mean(anchors.vlm, anchors.benign, path=anchors.path("benign_text")),
    }

    def make(first: float, alpha: float) -> list[Trial]:
        correction = CMRM(v, first, tokens="last")
        w = regained(anchors.vlm, trials, correction, **means)
        return edited(trials, ReGap(v, r, w, alpha, first=first))

    return make


METHOD = Method(
    _prepare,
    [{"first": f, "alpha": a} for f, a in ((0.05, 0.05), (0.05, 0.1))],
)
