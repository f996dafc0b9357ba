"""The shift that an image causes in the hidden states, per decoder layer."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from cmrm_utils.conditions import NOISES
from cmrm_utils.edits import Place, check_sample_ids, tensor_version
from cmrm_utils.engine.loops import hidden_states
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM
from cmrm_utils.sample import Sample
from cmrm_utils.store import check_same, hashed, replacing
from cmrm_utils.trials import Trial

Level = Literal["dataset", "sample"]
Estimator = Literal["mean", "pc1"]
Scale = Literal["raw", "unit", "std"]


@dataclass(frozen=True, eq=False)
class ShiftVectors:
    """A vector for each decoder layer: a shift, or a direction to compare a shift with.

    Attributes:
        values: float32 ``(layers, hidden)``; at sample level ``(samples, layers, hidden)``;
            ``(directions, layers, hidden)`` for several directions in a layer.
        sample_ids: the samples of the vectors, at sample level.
        provenance: how the vectors were made: model fingerprint, anchors, settings.

    Raises:
        InputError: a value is not finite; two samples have one id, or one has no vector.
    """

    values: Tensor
    sample_ids: tuple[str, ...] | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not torch.isfinite(self.values).all():
            raise InputError("vectors hold a NaN or an infinite value")
        if self.sample_ids is not None:
            check_sample_ids(self.sample_ids, len(self.values))

    @property
    def level(self) -> Level:
        """``sample`` or ``dataset``."""
        return "dataset" if self.sample_ids is None else "sample"

    @property
    def place(self) -> Place:
        """The place where they were taken, and belong (:data:`cmrm_utils.edits.PLACES`)."""
        return cast("Place", self.provenance.get("place", "layer"))

    @property
    def norms(self) -> Tensor:
        """Length of each layer's vector, ``(..., layers)``."""
        return self.values.norm(dim=-1)

    def cosine(self, other: "ShiftVectors") -> Tensor:
        """Cosine with other vectors at each layer, ``(..., layers)``."""
        return cosine_similarity(self.values, other.values, dim=-1)

    def _derived(self, values: Tensor, name: str) -> "ShiftVectors":
        return replace(self, values=values, provenance={**self.provenance, "derived": name})

    def only_at(self, layers: Sequence[int]) -> Tensor:
        """The values, with zeros at all other layers; the same tensor for the same layers."""
        if len(layers) == self.values.shape[-2]:
            return self.values
        key = (tensor_version(self.values), *layers)
        if key not in self._only_at:
            self._only_at[key] = torch.zeros_like(self.values)
            self._only_at[key][..., layers, :] = self.values[..., layers, :]
        return self._only_at[key]

    @cached_property
    def _only_at(self) -> dict[tuple[int, ...], Tensor]:
        return {}

    def increments(self) -> "ShiftVectors":
        """Each layer's own part of the shift: ``u_0 = v_0``, ``u_l = v_l - v_(l-1)``.

        Subtracting v at every layer counts the lower layers' shift repeatedly; u counts it once.
        """
        shares = self.values.clone()
        shares[..., 1:, :] -= self.values[..., :-1, :]
        return self._derived(shares, "increments")

    def random(self, seed: int) -> "ShiftVectors":
        """Random directions of the same norms: the control for "any push of this size"."""
        noise = torch.randn(self.values.shape, generator=torch.Generator().manual_seed(seed))
        return self._derived(_rescaled(noise, self.norms), f"random {seed}")

    def permuted(self, seed: int) -> "ShiftVectors":
        """The vectors moved to other layers, each with the norm of its new layer; none stays."""
        layers = self.values.shape[-2]
        generator = torch.Generator().manual_seed(seed)
        order = torch.arange(layers)
        while layers > 1 and bool((order == torch.arange(layers)).any()):
            order = torch.randperm(layers, generator=generator)
        moved = _rescaled(self.values[..., order, :], self.norms)
        return self._derived(moved, f"permuted {seed}")

    def heads(self, pairs: Iterable[tuple[int, int]], size: int) -> "ShiftVectors":
        """The vectors of some attention heads, with zeros for all others.

        Args:
            pairs: pairs of layer and head, both counted from 0.
            size: width of a head (:attr:`cmrm_utils.models.VLM.head_size`).

        Raises:
            InputError: the vectors are of another place, or there is no such head.
        """
        layers, width = self.values.shape[-2:]
        if self.place != "heads":
            raise InputError(f"vectors of place {self.place!r} have no heads")
        values = torch.zeros_like(self.values)
        for layer, head in pairs:
            if not (0 <= layer < layers and 0 <= head < width // size):
                raise InputError(
                    f"no head {head} in layer {layer}: {layers} layers of {width // size} heads"
                )
            part = (..., layer, slice(head * size, (head + 1) * size))
            values[part] = self.values[part]
        return self._derived(values, "some heads")

    def without(self, direction: "ShiftVectors") -> "ShiftVectors":
        """The vectors without each layer's component along ``direction``.

        Several directions (:func:`principal_directions`) must be orthonormal.
        """
        return self._derived(self.values - self._along(direction), "without direction")

    def minus(self, other: "ShiftVectors") -> "ShiftVectors":
        """The difference from other vectors at each layer."""
        return self._derived(self.values - other.values, "minus another")

    def only(self, direction: "ShiftVectors") -> "ShiftVectors":
        """Each layer's component along ``direction``, or within several orthonormal ones."""
        return self._derived(self._along(direction), "only direction")

    def _along(self, direction: "ShiftVectors") -> Tensor:
        if direction.sample_ids is None and direction.values.ndim == 3:
            shares = torch.einsum("...lh,klh->...lk", self.values, direction.values)
            return torch.einsum("...lk,klh->...lh", shares, direction.values)
        unit = normalize(direction.values, dim=-1)
        return (self.values * unit).sum(-1, keepdim=True) * unit

    def first(self, count: int) -> "ShiftVectors":
        """The first ``count`` of several directions in each layer."""
        return self._derived(self.values[:count], f"first {count}")

    def scaled(self, factor: float) -> "ShiftVectors":
        """The vectors times a number."""
        return self._derived(self.values * factor, f"times {factor:g}")

    def scaled_like(self, other: "ShiftVectors") -> "ShiftVectors":
        """The directions with the norms of other vectors, for comparisons at equal dose."""
        return self._derived(_rescaled(self.values, other.norms), "rescaled")

    def save(self, path: str | Path) -> None:
        """Write safetensors with the provenance as metadata, replacing the file as a whole."""
        metadata = {
            "provenance": json.dumps(dict(self.provenance), sort_keys=True),
            "sample_ids": json.dumps(self.sample_ids),
        }
        with replacing(Path(path)) as draft:
            draft.write_bytes(save({"values": self.values.contiguous()}, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "ShiftVectors":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: there is no such file, or it holds no vectors.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                ids = json.loads(metadata["sample_ids"])
                return cls(
                    stored.get_tensor("values"),
                    tuple(ids) if ids is not None else None,
                    json.loads(metadata["provenance"]),
                )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path}: no readable shift vectors ({error})") from error


def _rescaled(values: Tensor, norms: Tensor) -> Tensor:
    return normalize(values, dim=-1) * norms[..., None]


def shifts(
    vlm: VLM,
    anchors: Sequence[Sample],
    *,
    meaningless: str = "blank",
    place: Place = "layer",
    progress: bool = False,
) -> Tensor:
    """``h(x, img') - h(x)`` of every anchor, float32 ``(anchors, layers, hidden)``.

    The shift to ``noise`` is averaged over a few fixed noise images. h is read at ``place``
    (:data:`cmrm_utils.edits.PLACES`).
    """
    trials = _shift_trials(anchors, meaningless)
    states = hidden_states(vlm, trials, place=place, progress=progress)
    states = states.view(-1, len(anchors), *states.shape[1:])
    return states[1:].mean(0) - states[0]


def _shift_trials(anchors: Sequence[Sample], meaningless: str) -> list[Trial]:
    """Every anchor without an image, then with each meaningless image."""
    pictures = NOISES if meaningless == "noise" else (meaningless,)
    return [Trial(sample, image) for image in ("none", *pictures) for sample in anchors]


def extract_shift(
    vlm: VLM,
    anchors: Sequence[Sample],
    *,
    meaningless: str = "blank",
    level: Level = "dataset",
    estimator: Estimator = "mean",
    scale: Scale = "raw",
    place: Place = "layer",
    progress: bool = False,
) -> ShiftVectors:
    """The shift that a meaningless image causes (CMRM's v), at the last prompt token.

    Example:
        >>> vlm = load_vlm("organism")
        >>> anchors = [s for s in load_samples("organism", "anchors") if s.harmful][:8]
        >>> v = extract_shift(vlm, anchors)
        >>> v.values.shape
        torch.Size([6, 160])

    Args:
        vlm: the model.
        anchors: the samples to average over; at sample level, the samples to edit.
        meaningless: the image condition of img'.
        level: ``dataset``: one vector in each layer for all samples; ``sample``: one per sample.
        estimator: at dataset level. ``mean`` of the differences, or ``pc1``, the first principal
            component of the centred differences, signed to agree with the mean.
        scale: ``raw`` magnitude (for ``pc1`` that of the mean along it), ``unit`` length, or
            ``std``, the differences' standard deviation along the direction.
        place: where in a layer (:data:`cmrm_utils.edits.PLACES`).
        progress: show a bar.

    Raises:
        InputError: no anchors; ``pc1`` or ``std`` with fewer than two anchors or at sample level;
            at sample level, two samples of one id.
    """
    if not anchors:
        raise InputError("no anchors to take the shift on")
    if level == "sample":
        check_sample_ids([sample.id for sample in anchors])
    if (estimator == "pc1" or scale == "std") and (level == "sample" or len(anchors) < 2):
        raise InputError("pc1 and std need the dataset level and at least two anchors")
    differences = shifts(vlm, anchors, meaningless=meaningless, place=place, progress=progress)
    settings = {"meaningless": meaningless, "level": level, "estimator": estimator}
    provenance = _provenance(vlm, anchors, scale=scale, place=place, **settings)
    if level == "sample":
        values = normalize(differences, dim=-1) if scale == "unit" else differences
        return ShiftVectors(values, tuple(s.id for s in anchors), provenance)
    return ShiftVectors(_estimate(differences, estimator, scale), None, provenance)


def _estimate(differences: Tensor, estimator: Estimator, scale: Scale) -> Tensor:
    """``(anchors, layers, hidden)`` to float32 ``(layers, hidden)``, computed in float64."""
    exact = differences.double()
    mean = exact.mean(0)
    if estimator == "mean":
        direction = normalize(mean, dim=-1)
    else:
        direction = _leading(exact - mean, mean, 1)[0]
    if scale == "unit":
        return direction.float()
    size = (exact * direction).sum(-1).std(0) if scale == "std" else (mean * direction).sum(-1)
    return (direction * size[:, None]).float()


def _leading(exact: Tensor, mean: Tensor, count: int) -> Tensor:
    """Top right singular vectors of float64 differences, each signed to agree with the mean."""
    directions = torch.linalg.svd(exact.transpose(0, 1), full_matrices=False).Vh[:, :count]
    along = (directions * mean[:, None]).sum(-1, keepdim=True)
    return (directions * torch.where(along < 0, -1.0, 1.0)).transpose(0, 1)


def refusal_direction(
    vlm: VLM, harmful: Sequence[Sample], benign: Sequence[Sample], *, image: str = "none"
) -> ShiftVectors:
    """Mean state of harmful minus mean state of benign requests, per layer (arXiv 2406.11717).

    States are the decoder layers' outputs at the last prompt token, of text alone unless ``image``
    names another condition.

    Raises:
        InputError: there are no harmful or no benign samples.
    """
    if not harmful or not benign:
        raise InputError("the refusal direction needs harmful and benign samples")
    trials = [Trial(sample, image) for sample in (*harmful, *benign)]
    states = hidden_states(vlm, trials).double()
    values = states[: len(harmful)].mean(0) - states[len(harmful) :].mean(0)
    provenance = made_of(vlm, trials, "refusal") | {"n_harmful": str(len(harmful))}
    return ShiftVectors(values.float(), None, provenance)


def cached_shift(
    vlm: VLM, anchors: Sequence[Sample], path: Path | None, **settings: Any
) -> ShiftVectors:
    """:func:`extract_shift`, read from ``path`` or else saved there; None keeps nothing.

    Raises:
        InputError: ``path`` holds vectors of another model, other anchors or other settings.
    """
    provenance = _provenance(vlm, anchors, **settings)
    return load_or_make(path, provenance, lambda: extract_shift(vlm, anchors, **settings))


def load_or_make(
    path: Path | None, provenance: Mapping[str, str], make: Callable[[], ShiftVectors]
) -> ShiftVectors:
    """The vectors at ``path``, which must have this provenance; else made and saved there."""
    if path is not None and path.exists():
        stored = ShiftVectors.load(path)
        check_same({"place": "layer", **stored.provenance}, {"place": "layer", **provenance}, path)
        return stored
    vectors = make()
    if path is not None:
        vectors.save(path)
    return vectors


def leading_directions(differences: Tensor, count: int) -> Tensor:
    """Top right singular vectors at each layer: uncentred, each signed to agree with the mean.

    ``(n, layers, hidden)`` to float32 ``(count, layers, hidden)``, computed in float64.
    """
    exact = differences.double()
    return _leading(exact, exact.mean(0), count).float()


def principal_directions(vlm: VLM, anchors: Sequence[Sample], count: int) -> ShiftVectors:
    """Uncentred principal components of the anchors' shifts: the first contains the mean.

    Args:
        vlm: the model.
        anchors: the samples whose shifts are taken.
        count: number of directions in each layer.

    Returns:
        Orthonormal directions ``(count, layers, hidden)``, the largest first.

    Raises:
        InputError: there are more directions than anchors, or than the state is wide.
    """
    width = vlm.hidden_size
    if not 0 < count <= min(len(anchors), width):
        raise InputError(f"{count} directions of {len(anchors)} anchors and states of {width}")
    values = leading_directions(shifts(vlm, anchors), count)
    provenance = _provenance(vlm, anchors, estimator="principal", scale="unit")
    return ShiftVectors(values, None, provenance)


def made_of(vlm: VLM, trials: Sequence[Trial], what: str) -> dict[str, str]:
    """The provenance of vectors that were taken on trials."""
    ids = hashed(trial.id for trial in trials)
    return {"model": vlm.fingerprint, "trials": ids, "direction": what}


def _provenance(
    vlm: VLM,
    anchors: Sequence[Sample],
    *,
    meaningless: str = "blank",
    level: str = "dataset",
    estimator: str = "mean",
    scale: str = "raw",
    place: Place = "layer",
) -> dict[str, str]:
    """What :func:`extract_shift` records, with its defaults."""
    ids = [trial.id for trial in _shift_trials(anchors, meaningless)]
    if level == "sample":
        ids += [sample.id for sample in anchors]
    return ({} if place == "layer" else {"place": place}) | {
        "model": vlm.fingerprint,
        "meaningless": meaningless,
        "level": level,
        "estimator": estimator,
        "scale": scale,
        "n_anchors": str(len(anchors)),
        "anchors": hashed(ids),
    }
