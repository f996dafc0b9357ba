"""An edit: what is done to a model's hidden states, where, and at which tokens."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from cmrm_utils.errors import InputError

Place = Literal["layer", "heads", "mlp"]


PLACES: dict[Place, str] = {"layer": "", "heads": "self_attn.o_proj", "mlp": "mlp"}
"""Where in a decoder layer states are read and edited, and the path to the module there.

``layer``: the layer's output; ``heads``: what goes into the attention's output projection, all
heads' outputs side by side; ``mlp``: the MLP's output, before it is added to the residual stream.
"""


Tokens = Literal["all", "last", "image", "text", "prompt", "last prompt", "generated"]


PADDING, TEXT, IMAGE, LAST, GENERATED = range(5)
"""What a token is, in the kinds that :meth:`Steering.rows` takes: the last prompt token is LAST."""


REACH: dict[str, tuple[int, ...]] = {
    "all": (PADDING, TEXT, IMAGE, LAST, GENERATED),
    "last": (LAST, GENERATED),
    "image": (IMAGE,),
    "text": (TEXT, LAST),
    "prompt": (PADDING, TEXT, IMAGE, LAST),
    "last prompt": (LAST,),
    "generated": (GENERATED,),
}
"""What kinds of token an edit touches. (Padding is never looked at: to edit it costs no mask.)"""


@dataclass(frozen=True, eq=False)
class Edit:
    """What is done to the states at one place of which decoder layers, and to which tokens.

    Attributes:
        add: float32 ``(layers, hidden)``, added at each layer; a zero row leaves its layer alone.
            Sample-level edits are ``(samples, layers, hidden)``. ``hidden`` is the width of the
            place: of ``heads`` that of all heads, side by side.
        tokens: ``all``; ``last``: the last prompt token and every generated one; or one part:
            ``image``, ``text`` (the prompt's other tokens, its template's too), ``prompt`` (both),
            ``last prompt``, ``generated``. The first response token is chosen at the last prompt
            token: an edit of ``generated`` acts from the second one on.
        sample_ids: for a sample-level edit, whose row is whose.
        settings: how it was made (method, alpha ...), as columns for tables.
        project: float32 ``(layers, k, hidden)``, each layer's orthonormal directions, taken out
            before ``add``; zero rows take out nothing. A sample-level edit may have
            ``(samples, layers, k, hidden)``, or the same for all its samples.
        place: ``layer``, the decoder layers' outputs, or another of
            :data:`cmrm_utils.edits.PLACES`.
    """

    add: Tensor
    tokens: Tokens = "all"
    sample_ids: tuple[str, ...] | None = None
    settings: Mapping[str, str | float] = field(default_factory=dict)
    project: Tensor | None = None
    place: Place = "layer"

    def __post_init__(self) -> None:
        if self.tokens not in REACH:
            raise InputError(f"tokens must be one of {', '.join(REACH)}, not {self.tokens!r}")
        if self.place not in PLACES:
            raise InputError(f"place must be one of {', '.join(PLACES)}, not {self.place!r}")
        wanted = 2 if self.sample_ids is None else 3
        if self.add.ndim != wanted:
            raise InputError(f"an edit of {wanted} dimensions, not {tuple(self.add.shape)}")
        if self.sample_ids is not None:
            check_sample_ids(self.sample_ids, len(self.add))
        if not torch.isfinite(self.add).all():
            raise InputError("the edit has a NaN or an infinite value")
        if self.project is not None:
            _check_projection(self.project, self.add)

    @property
    def empty(self) -> bool:
        """Whether it changes nothing (alpha 0)."""
        return self._content[0]

    @property
    def projects(self) -> bool:
        """Whether it takes any direction out."""
        return bool(self.projection)

    @property
    def digest(self) -> str:
        """A hash of what it does; equal for equal edits, ``none`` for an empty one."""
        return self._content[1]

    @property
    def projection(self) -> str:
        """A hash of what it takes out; empty for nothing."""
        return self._content[2]

    @property
    def _content(self) -> tuple[bool, str, str]:
        """Whether it is empty, and the hashes; computed anew when its tensors have changed."""
        state = (_version(self.add), None if self.project is None else _version(self.project))
        if state not in self._contents:
            self._contents.clear()
            self._contents[state] = self._hashed()
        return self._contents[state]

    @cached_property
    def _contents(self) -> dict[Any, tuple[bool, str, str]]:
        return {}

    def _hashed(self) -> tuple[bool, str, str]:
        projection = ""
        if self.project is not None and bool(self.project.any()):
            content = f"{tuple(self.project.shape)}".encode() + _bytes(self.project)
            projection = hashlib.sha256(content).hexdigest()
        if not projection and not bool(self.add.any()):
            return True, "none", ""
        # Of the layers' outputs nothing is said: they were the only place once, and stored
        # responses are known by those digests.
        place = "" if self.place == "layer" else self.place
        content = _bytes(self.add) + f"{self.tokens}{projection}{place}".encode()
        return False, hashlib.sha256(content).hexdigest()[:24], projection

    def row(self, sample_id: str) -> "Edit":
        """The edit of one sample; a dataset-level edit is its own.

        Raises:
            InputError: a sample-level edit that has no vectors for the sample.
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
        """Whether it can change what comes before a prompt's last token."""
        return bool({TEXT, IMAGE} & {*REACH[self.tokens]})


def check_sample_ids(ids: Sequence[str], count: int | None = None) -> None:
    """See that samples can be told apart by their ids, and that each has its vectors.

    Raises:
        InputError: an id that stands twice, or another number of vectors than ``count``.
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


def _version(values: Tensor) -> int:
    """How often a tensor has been changed in place; one made in inference mode cannot be."""
    return 0 if values.is_inference() else values._version


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().float().numpy().tobytes()


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
        raise InputError("the directions to be projected out are not orthonormal")
