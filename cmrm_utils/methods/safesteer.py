"""SafeSteer (arXiv 2509.21400)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cmrm_utils.edits import Edit
from cmrm_utils.engine.loops import hidden_states
from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import (
    Anchors,
    Make,
    Method,
    chosen_layers,
    each,
    edited,
    finite,
    samples_of,
    settings_of,
    shown,
)
from cmrm_utils.methods.gate import harm_probe
from cmrm_utils.models import VLM
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors, leading_directions

SAFETY_SENTENCE = "Stay safe: turn down whatever could hurt someone."
"""A sentence after the query, whose pull on the states SafeSteer amplifies; the words are ours."""

DIRECTIONS = 4
"""Singular vectors that span the principal part. The number is ours."""


LAST_LAYERS = 4
"""Layers whose states the gate reads: the last of the model."""


def SafeSteer(
    pushes: ShiftVectors,
    principal: ShiftVectors,
    gates: Mapping[str, float],
    alpha: float,
    *,
    layers: Sequence[int],
) -> Edit:
    """SafeSteer (arXiv 2509.21400): push each sample the way a safety sentence pushes it.

    ``h + alpha (2p - 1) |h| d'/|d'|`` with ``d' = 2 V'Vd + 0.5 (d - V'Vd)``, at the last prompt
    token and at generated ones. p is how harmful the sample looks, so that one which looks
    harmless is pushed the other way. The authors stop after 30 new tokens; here the push stays on.

    Args:
        pushes: d, of the samples to be edited (:func:`sentence_pushes`).
        principal: V, orthonormal ``(k, layers, hidden)``.
        gates: p by sample id, from 0 to 1; 1 is the method without its gate.
        alpha: strength, relative to the state's norm.
        layers: those to edit, counted from 0; the authors take a few in the middle.

    Raises:
        InputError: a sample without a gate.
    """
    ids = pushes.sample_ids or ()
    if missing := [each for each in ids if each not in gates]:
        raise InputError(f"sample {missing[0]!r} has no gate")
    chosen = chosen_layers(layers, pushes.values.shape[-2])
    along = pushes.only(principal).values
    unit = normalize(2 * along + 0.5 * (pushes.values - along), dim=-1)
    signs = torch.tensor([2 * gates[each] - 1 for each in ids])
    add = torch.zeros_like(unit)
    add[:, chosen] = signs[:, None, None] * unit[:, chosen]
    settings = settings_of("SafeSteer", finite(alpha), "last", layers, chosen)
    return Edit(add, "last", ids, settings, strength=float(alpha), weight="norm")


def sentence_pushes(vlm: VLM, trials: Sequence[Trial]) -> ShiftVectors:
    """d: ``h(prompt + safety sentence) - h(prompt)`` of each trial, at the last prompt token.

    Args:
        vlm: the model.
        trials: one a sample, unedited.

    Raises:
        InputError: two trials of one sample.
    """
    said = [Trial(t.sample, t.image, None, f"{t.text} {SAFETY_SENTENCE}") for t in trials]
    plain, after = hidden_states(vlm, [*trials, *said]).chunk(2)
    return ShiftVectors(after - plain, tuple(trial.sample.id for trial in trials))


def harm_shares(harmful: Tensor, harmless: Tensor, states: Tensor) -> list[float]:
    """p: how likely each state is harmful's, by a logistic regression on the last layers.

    Args:
        harmful: states to learn from ``(n, layers, hidden)``.
        harmless: likewise.
        states: those to tell.

    Raises:
        InputError: nothing to learn from on a side.
    """
    if not len(harmful) or not len(harmless):
        raise InputError("SafeSteer's gate learns from harmful and harmless requests")

    def last(part: Tensor) -> Tensor:
        return part[:, -LAST_LAYERS:].flatten(1)

    probe = harm_probe(last(harmful), last(harmless))
    return probe.predict_proba(last(states).double().numpy())[:, 1].tolist()


def _prepare(anchors: Anchors, trials: Sequence[Trial]) -> Make:
    vlm, count = anchors.vlm, len(anchors.vlm.layers)

    harmful, harmless = shown(anchors.harmful), shown(anchors.benign)
    learnt = sentence_pushes(vlm, harmful)
    few = min(DIRECTIONS, len(harmful), vlm.hidden_size)
    principal = ShiftVectors(leading_directions(learnt.values, few))
    samples_of(trials)  # two samples of one id would share a push
    first = {trial.sample.id: trial for trial in trials}
    pushes = sentence_pushes(vlm, list(first.values()))
    bad, good, own = (
        hidden_states(vlm, these) for these in (harmful, harmless, list(first.values()))
    )
    probed = dict(zip(first, harm_shares(bad, good, own), strict=True))
    middle = range(int(0.4 * count), max(int(0.6 * count), int(0.4 * count) + 1))

    def make(gate: Literal["published", "none"], alpha: float) -> list[Trial]:
        gates = probed if gate == "published" else dict.fromkeys(first, 1.0)
        return edited(trials, SafeSteer(pushes, principal, gates, alpha, layers=middle))

    return make


METHOD = Method(_prepare, each(gate=["none", "published"], alpha=[0.05, 0.1]))
