"""ASTRA (arXiv 2411.16721)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cmrm_utils.edits import Edit
from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import (
    Anchors,
    Make,
    Method,
    adding,
    cached_vectors,
    each,
    edited,
    mean_state,
    shown,
)
from cmrm_utils.models import VLM
from cmrm_utils.sample import Sample
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors

REQUESTS = 16
"""Harmful anchors that each adversarial picture is shown with."""


def ASTRA(attack: ShiftVectors, calm: ShiftVectors, alpha: float, *, layer: int) -> Edit:
    """ASTRA (arXiv 2411.16721): take out what attacks add, as far as a state has it.

    ``h - alpha |h| clip(cos(h - h_ref, v), 0, 1) v/|v|`` at one layer, at the last prompt token
    and at every generated one. The authors' layer is the 20th of LLaVA-1.5-7B's 32, their alpha 5
    to 10.

    Args:
        attack: v (:func:`attack_direction`).
        calm: h_ref, the mean state of ordinary inputs (:func:`.base.mean_state`).
        alpha: strength, relative to the state's norm.
        layer: at whose output, counted from 0.
    """
    unit = ShiftVectors(normalize(attack.values, dim=-1))
    edit = adding(unit, alpha, layers=[layer], tokens="last", name="ASTRA", sign=-1)
    return replace(edit, weight="angle", reference=calm.values)


def attack_direction(
    vlm: VLM,
    samples: Sequence[Sample],
    pictures: Sequence[tuple[Image.Image, Image.Image]],
    *,
    path: Path | None = None,
) -> ShiftVectors:
    """What makes a picture an attack: its state minus that with its adversarial part masked.

    The mean over pictures and requests, at the last prompt token of every layer.

    Args:
        vlm: the model.
        samples: requests that each picture is shown with.
        pictures: adversarial ones, each with its masked copy.
        path: where it is kept, and taken from if it is there.

    Raises:
        InputError: no requests or no pictures; ``path`` holds other vectors.
    """
    if not samples or not pictures:
        raise InputError("ASTRA learns from adversarial pictures, shown with requests")
    trials = [
        Trial(replace(sample, image=picture), "own")
        for sides in zip(*pictures, strict=True)
        for picture in sides
        for sample in samples
    ]

    def differences(states: Tensor) -> Tensor:
        whole, masked = states.double().chunk(2)
        return (whole - masked).mean(0).float()

    return cached_vectors(vlm, trials, "attack", differences, path=path)


def _prepare(anchors: Anchors, trials: Sequence[Trial]) -> Make:
    samples, path = anchors.harmful[:REQUESTS], anchors.path("attack")
    v = attack_direction(anchors.vlm, samples, anchors.pictures(), path=path)
    calm = mean_state(anchors.vlm, shown(anchors.benign), "calm", path=anchors.path("calm"))
    count = len(anchors.vlm.layers)

    def make(depth: float, alpha: float) -> list[Trial]:
        return edited(trials, ASTRA(v, calm, alpha, layer=int(depth * count)))

    return make


METHOD = Method(_prepare, each(depth=[0.625], alpha=[0.5, 1.0, 2.0]))


PUBLISHED = Method(
    lambda anchors, trials: lambda: _prepare(anchors, trials)(depth=0.625, alpha=5.0), [{}]
)
"""Layer 20 of 32, scaled to the model's depth, and the smallest alpha of the authors' range."""
