"""A gate: whether a state looks harmful, so that an edit is made only where it is called for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from cmrm_utils.edits import Edit
from cmrm_utils.errors import InputError

How = Literal["mean", "probe"]


@dataclass(frozen=True, eq=False)
class Gate:
    """A plane between harmful states and the rest, at one decoder layer.

    Attributes:
        layer: whose states it reads.
        direction: float32 ``(hidden,)``, towards harm.
        threshold: the gate is on where a state's product with the direction is above it.
    """

    layer: int
    direction: Tensor
    threshold: float

    def on(self, states: Tensor) -> list[bool]:
        """Whether it is on for each of the states ``(n, layers, hidden)``."""
        return (states[:, self.layer] @ self.direction > self.threshold).tolist()


def fit_gate(harmful: Tensor, harmless: Tensor, how: How = "mean") -> Gate:
    """A gate that tells two sets of states ``(n, layers, hidden)`` apart.

    Fitted at every layer on every other state; the layer is the one at which the states left out
    are told apart best (the mean of the two sides' shares, and of equal ones the lowest layer),
    and there it is fitted to all.

    Args:
        harmful: states for which it is to be on.
        harmless: states for which it is to be off.
        how: ``mean``: along the difference of the means, half-way between them; ``probe``: a
            logistic regression on standardised states, both sides weighing alike.

    Raises:
        InputError: fewer than two states on a side.
    """
    if min(len(harmful), len(harmless)) < 2:
        raise InputError("a gate is fitted to two states of each side at least")
    fit = {"mean": _half_way, "probe": _probe}[how]

    def told_apart(layer: int) -> float:
        gate = fit(harmful[::2], harmless[::2], layer)
        right, wrong = gate.on(harmful[1::2]), gate.on(harmless[1::2])
        return float(np.mean(right) + 1 - np.mean(wrong))

    best = max(range(harmful.shape[1]), key=told_apart)
    return fit(harmful, harmless, best)


def _half_way(harmful: Tensor, harmless: Tensor, layer: int) -> Gate:
    high, low = harmful[:, layer].mean(0), harmless[:, layer].mean(0)
    direction = torch.nn.functional.normalize(high - low, dim=0)
    return Gate(layer, direction, float(direction @ (high + low) / 2))


def _probe(harmful: Tensor, harmless: Tensor, layer: int) -> Gate:
    states = torch.cat([harmful[:, layer], harmless[:, layer]]).double().numpy()
    labels = [1] * len(harmful) + [0] * len(harmless)
    scaler = StandardScaler().fit(states)
    probe = LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced")
    probe.fit(scaler.transform(states), labels)
    direction = probe.coef_[0] / scaler.scale_
    threshold = direction @ scaler.mean_ - probe.intercept_[0]
    return Gate(layer, torch.from_numpy(direction).float(), float(threshold))


def gated(edit: Edit, on: Mapping[str, bool], *, name: str) -> Edit:
    """An edit for those samples whose gate is on, and nothing for the others.

    Args:
        edit: of the dataset level, or one that has rows for all the samples.
        on: whether the gate is on, by sample id.
        name: what tables call it.
    """
    shares = torch.tensor(list(on.values()), dtype=torch.float32)
    rows = [edit.row(sample) for sample in on]
    add = torch.stack([row.add for row in rows]) * shares[:, None, None]
    project = None
    if edit.project is not None:
        own = [row.project for row in rows if row.project is not None]
        project = torch.stack(own) * shares[:, None, None, None]
    settings = {**edit.settings, "method": name}
    return replace(edit, add=add, sample_ids=tuple(on), settings=settings, project=project)
