"""An edit: a change of a model's hidden states, at some place, for some tokens."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from cmrm_utils.errors import InputError, unknown

Place = Literal["layer", "heads", "mlp"]


PLACES: dict[Place, str] = {"layer": "", "heads": "self_attn.o_proj", "mlp": "mlp"}
"""Where in a decoder layer states are read and edited, and the path of the module there.

``layer``: the layer's output; ``heads``: the input of the attention's output projection, which is
all heads' outputs side by side; ``mlp``: the MLP's output, before it joins the residual stream.
"""


Tokens = Literal["all", "last", "image", "text", "prompt", "last prompt", "generated"]


PADDING, TEXT, IMAGE, LAST, GENERATED = range(5)
"""Kinds of token for :meth:`cmrm_utils.hooks.Steering.rows`. LAST is the last prompt token."""


REACH: dict[str, tuple[int, ...]] = {
    "all": (PADDING, TEXT, IMAGE, LAST, GENERATED),
    "last": (LAST, GENERATED),
    "image": (IMAGE,),
    "text": (TEXT, LAST),
    "prompt": (PADDING, TEXT, IMAGE, LAST),
    "last prompt": (LAST,),
    "generated": (GENERATED,),
}
"""The kinds of token that an edit touches.

Padding is masked out of attention, so editing it is harmless and saves building a mask.
"""


Weight = Literal["one", "norm", "angle"]


WEIGHTS: tuple[Weight, ...] = ("one", "norm", "angle")
"""What an addition is multiplied by at each token, h being the state there.

``one``: nothing. ``norm``: ``|h|``, so that the strength is relative to the state. ``angle``:
``|h| clip(cos(h - reference, -add), 0, 1)``, so that a direction is taken away only as far as the
state has it.
"""


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of hidden states: ``h - P h + strength * add`` at some layers, for some tokens.

    The product is taken where it is needed (:attr:`added`), so that the edits of a sweep over
    strengths share one tensor ``add``.

    Attributes:
        add: float32 ``(layers, hidden)``, the direction at each layer; a zero row leaves its layer
            alone. A sample-level edit has ``(samples, layers, hidden)``. ``hidden`` is the width
            of the place; at ``heads`` it is the width of all heads, side by side.
        tokens: which tokens are edited. ``all``; ``last``: the last prompt token and every
            generated one; or one part: ``image``, ``text`` (all other prompt tokens, the
            template's too), ``prompt`` (both), ``last prompt``, ``generated``. The first response
            token is chosen at the last prompt token, so an edit of ``generated`` acts from the
            second one on.
        sample_ids: the ids of the samples that the rows of a sample-level edit belong to.
        settings: how the edit was made (method, alpha ...), as columns for tables.
        project: float32 ``(layers, k, hidden)``, orthonormal directions that are projected out at
            each layer before the addition; zero rows project out nothing. A sample-level edit may
            have ``(samples, layers, k, hidden)``, or one projection for all its samples.
        place: where in a decoder layer (:data:`PLACES`).
        strength: what ``add`` is multiplied by; the projection is not.
        weight: what it is multiplied by besides, at each token (:data:`WEIGHTS`).
        reference: float32 ``(layers, hidden)``, what states are held against; of ``angle`` alone.

    Raises:
        InputError: unknown tokens, place or weight, shapes that do not fit, a value that is not
            finite, directions that are not orthonormal, two samples of one id.
    """

    add: Tensor
    tokens: Tokens = "all"
    sample_ids: tuple[str, ...] | None = None
    settings: Mapping[str, str | float] = field(default_factory=dict)
    project: Tensor | None = None
    place: Place = "layer"
    strength: float = 1.0
    weight: Weight = "one"
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens not in REACH:
            raise unknown("no tokens", self.tokens, REACH)
        if self.place not in PLACES:
            raise unknown("no place", self.place, PLACES)
        wanted = 2 if self.sample_ids is None else 3
        if self.add.ndim != wanted:
            raise InputError(f"an edit of {wanted} dimensions, not {tuple(self.add.shape)}")
        if self.sample_ids is not None:
            check_sample_ids(self.sample_ids, len(self.add))
        if not torch.isfinite(self.added).all():
            raise InputError("the edit has a NaN or an infinite value")
        if self.project is not None:
            _check_projection(self.project, self.add)
        _check_weight(self.weight, self.reference, self.add)

    @property
    def added(self) -> Tensor:
        """``strength * add``, float32: what is added to the states."""
        return self.add.detach().float() * self.strength

    @property
    def empty(self) -> bool:
        """Whether it changes nothing: strength 0 or zero vectors, and no projection."""
        return self.digest == "none"

    @property
    def digest(self) -> str:
        """A hash of what the edit does; ``none`` if it does nothing.

        The product of strength and vectors is hashed, not the factors: equal edits have equal
        digests, however they were written.
        """
        return self._digests[0]

    @property
    def projection(self) -> str:
        """A hash of the directions that are projected out; empty if there are none."""
        return self._digests[1]

    @property
    def _digests(self) -> tuple[str, str]:
        """Both digests; computed anew when the tensors have changed."""
        tensors = (self.add, self.project, self.reference)
        state = tuple(x if x is None else tensor_version(x) for x in tensors)
        if state not in self._contents:
            self._contents.clear()
            self._contents[state] = self._hashed()
        return self._contents[state]

    @cached_property
    def _contents(self) -> dict[Any, tuple[str, str]]:
        return {}

    def _hashed(self) -> tuple[str, str]:
        projection = ""
        if self.project is not None and bool(self.project.any()):
            content = f"{tuple(self.project.shape)}".encode() + _bytes(self.project)
            projection = hashlib.sha256(content).hexdigest()
        added = self.added
        if not projection and not bool(added.any()):
            return "none", ""
        # Layer outputs were once the only place, so stored responses have digests without it.
        place = "" if self.place == "layer" else self.place
        # Adding 0.0 makes -0.0 equal to 0.0 in bytes too.
        content = _bytes(added + 0.0) + f"{self.tokens}{projection}{place}".encode()
        if self.weight != "one":
            content += self.weight.encode()
        if self.reference is not None:
            content += _bytes(self.reference)
        return hashlib.sha256(content).hexdigest()[:24], projection

    def row(self, sample_id: str) -> "Edit":
        """The edit of one sample, its vectors a view; a dataset-level edit is returned as it is.

        Raises:
            InputError: a sample-level edit has no vectors for the sample.
        """
        if self.sample_ids is None:
            return self
        if sample_id not in self._rows:
            raise InputError(f"sample-level vectors have none for sample {sample_id!r}")
        i, project = self._rows[sample_id], self.project
        own = project[i] if project is not None and project.ndim == 4 else project
        return replace(self, add=self.add[i], sample_ids=None, project=own)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {sample_id: i for i, sample_id in enumerate(self.sample_ids or ())}

    @property
    def touches_beginnings(self) -> bool:
        """Whether it can change states before a prompt's last token."""
        return bool({TEXT, IMAGE} & {*REACH[self.tokens]})


def check_sample_ids(ids: Sequence[str], count: int | None = None) -> None:
    """Check that sample ids are unique, and that there is one for each of ``count`` vectors.

    Raises:
        InputError: an id occurs twice, or the numbers differ.
    """
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise InputError(
                f"two samples have the id {each!r}, so neither's vectors can be told from the "
                "other's: give each sample an id of its own"
            )
        seen.add(each)
    if count is not None and len(ids) != count:
        raise InputError(f"{len(ids)} sample ids, but vectors of {count} samples")


def tensor_version(values: Tensor) -> int:
    """How often a tensor has been changed in place; torch does not count in inference mode."""
    return 0 if values.is_inference() else values._version


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().float().numpy().tobytes()


def _check_weight(weight: str, reference: Tensor | None, add: Tensor) -> None:
    if weight not in WEIGHTS:
        raise unknown("no weight", weight, WEIGHTS)
    if (weight == "angle") != (reference is not None):
        raise InputError(f"weight {weight!r} with {'no' if reference is None else 'a'} reference")
    if reference is not None:
        if reference.shape != add.shape[-2:]:
            raise InputError(
                f"the reference is {tuple(reference.shape)}, "
                f"the vectors are (layers, hidden) = {tuple(add.shape[-2:])}"
            )
        if not torch.isfinite(reference).all():
            raise InputError("the reference has a NaN or an infinite value")


def _check_projection(project: Tensor, add: Tensor) -> None:
    *before, layers, _, hidden = project.shape if project.ndim > 2 else (0, 0, 0)
    if (layers, hidden) != add.shape[-2:] or before not in ([], list(add.shape[:-2])):
        raise InputError(
            f"the projection is (layers, k, hidden) = {tuple(project.shape)}, "
            f"the vectors are (layers, hidden) = {tuple(add.shape)}"
        )
    products = project.double() @ project.double().mT
    lengths = products.diagonal(dim1=-2, dim2=-1)
    wanted = torch.diag_embed((lengths > 0.5).double())
    if not bool(((products - wanted).abs() < 1e-4).all()):  # a NaN fails too
        raise InputError("the directions to project out are not orthonormal")
