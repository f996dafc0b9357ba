"""What a method is: fitted on anchors, it takes plain trials and gives edited ones.

A method is a file in this folder with a :class:`Method`, and a line in ``registry.py``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from cmrm_utils.edits import Edit, Tokens, check_sample_ids
from cmrm_utils.engine.loops import hidden_states
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM
from cmrm_utils.sample import Sample
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import (
    ShiftVectors,
    cached_shift,
    load_or_make,
    made_of,
    refusal_direction,
)

Layers = Literal["all", "late"] | Iterable[int]
"""Decoder layers to edit, counted from 0; ``late``: from the middle on."""

Settings = Mapping[str, Any]
"""A method's settings by name, such as ``{"alpha": 0.2}``."""

Respond = Callable[[Sequence[Trial]], list[str]]
"""Gives a model's responses to trials, in their order."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """What methods are fitted on.

    Attributes:
        vlm: the model.
        harmful: requests that must be refused.
        benign: requests that must be answered.
        respond: gives the model's responses, for methods that ask it something.
        folder: where vectors are kept, and reused from; None keeps none.
        pictures: gives adversarial pictures, each with its masked copy, for methods that learn
            from attacks.
    """

    vlm: VLM
    harmful: Sequence[Sample]
    benign: Sequence[Sample]
    respond: Respond
    folder: Path | None = None
    pictures: Callable[[], Sequence[tuple[Image, Image]]] = tuple

    def path(self, name: str) -> Path | None:
        """Where vectors of a name are kept; the file's name says on how many anchors."""
        return self.folder and self.folder / f"{name}_{len(self.harmful)}.safetensors"

    def shift(self) -> ShiftVectors:
        """CMRM's v: the shift that a blank image causes on the harmful anchors."""
        return cached_shift(self.vlm, self.harmful, self.path("harmful_blank"))

    def refusal(self) -> ShiftVectors:
        """The refusal direction: harmful minus benign requests, text only."""
        kinds, path = (self.harmful, self.benign), self.path("text_safety")
        return safety_direction(self.vlm, *kinds, image="none", path=path).scaled(-1.0)


def safety_direction(
    vlm: VLM,
    harmful: Sequence[Sample],
    benign: Sequence[Sample],
    *,
    image: str = "none",
    path: Path | None = None,
) -> ShiftVectors:
    """Mean state of benign minus mean state of harmful requests: the refusal direction, negated.

    Args:
        vlm: the model.
        harmful: anchors that must be refused.
        benign: anchors that must be answered.
        image: an image condition without an image.
        path: the file to read it from, or else to save it to.

    Raises:
        InputError: there are no anchors; ``path`` holds other vectors.
    """
    trials = [Trial(sample, image) for sample in (*harmful, *benign)]
    provenance = made_of(vlm, trials, "safety") | {"n_harmful": str(len(harmful))}

    def make() -> ShiftVectors:
        values = -refusal_direction(vlm, harmful, benign, image=image).values
        return ShiftVectors(values, None, provenance)

    return load_or_make(path, provenance, make)


Make = Callable[..., list[Trial]]
"""From a setting to the trials, edited by it."""


@dataclass(frozen=True)
class Method:
    """A way to make a model refuse again.

    Attributes:
        prepare: learns what it must of the anchors and of the trials' samples, once for all
            settings; it gives what edits the trials by a setting.
        settings: those tried on validation, the gentlest first.
    """

    prepare: Callable[[Anchors, Sequence[Trial]], Make]
    settings: Sequence[Settings]


def edited(trials: Iterable[Trial], edit: Edit) -> list[Trial]:
    """The trials under an edit; of a sample-level edit each takes its sample's row."""
    return [replace(trial, edit=edit) for trial in trials]


def samples_of(trials: Iterable[Trial]) -> list[Sample]:
    """The samples of trials, each once, in order of first appearance.

    Raises:
        InputError: two samples have one id.
    """
    samples = list(dict.fromkeys(trial.sample for trial in trials))
    check_sample_ids([sample.id for sample in samples])
    return samples


def by_alpha(
    fit: Callable[[Anchors, Sequence[Sample]], Callable[[float], Edit]], alphas: Iterable[float]
) -> Method:
    """A method that has an alpha alone.

    Args:
        fit: from the anchors and the samples to be edited to an edit by alpha.
        alphas: those to try; 0, no edit, is left out.
    """

    def prepare(anchors: Anchors, trials: Sequence[Trial]) -> Make:
        edit = fit(anchors, samples_of(trials))
        return lambda alpha: edited(trials, edit(alpha))

    return Method(prepare, at_alphas(alphas))


def at_alphas(alphas: Iterable[float]) -> list[Settings]:
    """The settings of a method that has an alpha alone, ascending; 0, no edit, is left out."""
    return each(alpha=sorted({float(alpha) for alpha in alphas} - {0.0}))


def each(**values: Sequence[Any]) -> list[Settings]:
    """Every combination of the values of settings; the last name's value changes fastest."""
    return [dict(zip(values, one, strict=True)) for one in product(*values.values())]


def adding(
    vectors: ShiftVectors, alpha: float, *, layers: Layers, tokens: Tokens, name: str, sign: int = 1
) -> Edit:
    """``h + sign * alpha * v`` at each chosen layer; edits of the same vectors share a tensor."""
    alpha = finite(alpha)
    chosen = chosen_layers(layers, vectors.values.shape[-2])
    settings = settings_of(name, alpha, tokens, layers, chosen)
    values, ids, place = vectors.only_at(chosen), vectors.sample_ids, vectors.place
    return Edit(values, tokens, ids, settings, place=place, strength=sign * alpha)


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
    name: str, alpha: float, tokens: Tokens, layers: Layers, numbers: Sequence[int]
) -> dict[str, str | float]:
    """How an edit was made, as columns for tables."""
    return {
        "method": name,
        "alpha": alpha,
        "tokens": tokens,
        "layers": "all" if layers == "all" else ",".join(map(str, numbers)),
    }


def cached_vectors(
    vlm: VLM,
    trials: Sequence[Trial],
    what: str,
    reduce: Callable[[Tensor], Tensor],
    *,
    path: Path | None = None,
    ids: tuple[str, ...] | None = None,
    **made_with: str,
) -> ShiftVectors:
    """Vectors made of the hidden states of trials.

    Args:
        vlm: the model.
        trials: whose states are read.
        what: what the vectors are, for their provenance.
        reduce: from the states ``(trials, layers, hidden)`` to the vectors.
        path: where they are kept, and taken from if they are there; None keeps nothing.
        ids: of the samples of sample-level vectors.
        made_with: what else belongs to their provenance.

    Raises:
        InputError: ``path`` holds other vectors; two samples have one id.
    """
    provenance = made_of(vlm, trials, what) | made_with

    def make() -> ShiftVectors:
        return ShiftVectors(reduce(hidden_states(vlm, trials)), ids, provenance)

    return load_or_make(path, provenance, make)


def mean_state(
    vlm: VLM, trials: Sequence[Trial], what: str, *, path: Path | None = None
) -> ShiftVectors:
    """The mean state of trials at the last prompt token, at each layer.

    Args:
        vlm: the model.
        trials: whose states are read.
        what: what the mean is, for its provenance.
        path: where it is kept, and taken from if it is there.

    Raises:
        InputError: no trials; ``path`` holds other vectors.
    """
    if not trials:
        raise InputError("no samples to take a mean of")

    def mean(states: Tensor) -> Tensor:
        return states.double().mean(0).float()

    return cached_vectors(vlm, trials, what, mean, path=path)


def shown(samples: Iterable[Sample], image: str = "own") -> list[Trial]:
    """Samples in an image condition, those without an image as text."""
    return [Trial(s, "none" if s.image is None else image) for s in samples]


def only_named(method: str) -> Edit:
    """No edit, under a method's name: tables then show what a changed prompt belongs to."""
    return Edit(torch.zeros(1, 1), settings={"method": method})


def dose(edit: Edit, states: Tensor) -> Tensor:
    """``|alpha v| / |h|`` per layer: how large what an edit adds is beside what it is added to.

    What it projects out is not counted. An edit that is relative to the state (``weight``) is
    counted at its most.

    Args:
        edit: an edit; of a sample-level one the mean norm counts.
        states: hidden states ``(trials, layers, hidden)``; their mean norm counts.

    Returns:
        float32 ``(layers,)``.
    """
    size = edit.added.norm(dim=-1)
    size = size if size.ndim == 1 else size.mean(0)
    return size / states.norm(dim=-1).mean(0) if edit.weight == "one" else size
