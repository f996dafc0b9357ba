"""The only file that registers a hook: :func:`record` reads layers, :func:`apply` edits them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM

Tokens = Literal["all", "last"]


@dataclass(frozen=True, eq=False)
class Edit:
    """What is added to the residual stream, at which decoder layers and which tokens.

    Attributes:
        add: float32 ``(layers, hidden)``, added to each layer's output; a zero row leaves its
            layer alone. Sample-level edits are ``(samples, layers, hidden)``.
        tokens: ``all``, or ``last``: the last prompt token and every generated one.
        sample_ids: for a sample-level edit, whose row is whose.
        settings: how it was made (method, alpha ...), as columns for tables.
    """

    add: Tensor
    tokens: Tokens = "all"
    sample_ids: tuple[str, ...] | None = None
    settings: Mapping[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens not in ("all", "last"):
            raise InputError(f"tokens must be 'all' or 'last', not {self.tokens!r}")
        wanted = 2 if self.sample_ids is None else 3
        if self.add.ndim != wanted:
            raise InputError(f"an edit of {wanted} dimensions, not {tuple(self.add.shape)}")
        if not torch.isfinite(self.add).all():
            raise InputError("the edit has a NaN or an infinite value")

    @cached_property
    def empty(self) -> bool:
        """Whether it changes nothing (alpha 0)."""
        return not bool(self.add.any())

    @cached_property
    def digest(self) -> str:
        """A hash of what it does; equal for equal edits, ``none`` for an empty one."""
        if self.empty:
            return "none"
        content = self.add.detach().cpu().contiguous().float().numpy().tobytes()
        return hashlib.sha256(content + self.tokens.encode()).hexdigest()[:24]

    def row(self, sample_id: str) -> "Edit":
        """The edit of one sample; a dataset-level edit is its own.

        Raises:
            InputError: a sample-level edit that has no vectors for the sample.
        """
        if self.sample_ids is None:
            return self
        if sample_id not in self._rows:
            raise InputError(f"sample-level vectors have none for sample {sample_id!r}")
        return replace(self, add=self.add[self._rows[sample_id]], sample_ids=None)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {sample_id: i for i, sample_id in enumerate(self.sample_ids or ())}


class _LayerEdit:
    """The hook of one layer: rows x hidden to add to all tokens, and to the last one only."""

    def __init__(self, everywhere: Tensor, last: Tensor) -> None:
        self._vectors = (everywhere[:, None, :], last[:, None, :])
        self._used = (bool(everywhere.any()), bool(last.any()))
        self._placed: tuple[Tensor, Tensor] | None = None

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        rows = self._vectors[0].shape[0]
        if rows not in (1, states.shape[0]):
            raise InputError(
                f"an edit of {rows} rows met a batch of {states.shape[0]}; "
                "beams and several return sequences are not supported"
            )
        if self._placed is None:
            # Only here is the layer's device known: under offload its parameters are on "meta".
            everywhere, last = (v.to(states.device, states.dtype) for v in self._vectors)
            self._placed = (everywhere, last)
        everywhere, last = self._placed
        # New tensors, never in place: recorded states must not change behind a reader's back.
        edited = states + everywhere if self._used[0] else states
        if self._used[1]:
            if states.shape[1] == 1:
                edited = edited + last
            else:
                edited = torch.cat([edited[:, :-1], edited[:, -1:] + last], dim=1)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited


@contextmanager
def apply(vlm: VLM, edit: Edit | Sequence[Edit | None] | None) -> Iterator[None]:
    """Edit the decoder layers' outputs within a ``with`` block.

    Works with any forward pass and with ``generate``; prompts must be left-padded where
    ``tokens="last"``. Whatever happens inside, its own hooks are gone afterwards.

    Args:
        vlm: the model.
        edit: one edit for every row, or one (or None) for each row of the batches to come.

    Raises:
        InputError: sample-level vectors without a row chosen, an edit of another model's size,
            or, from inside, a batch of another number of rows (beams among them).
    """
    edits = [edit] if isinstance(edit, Edit) or edit is None else list(edit)
    size = (len(vlm.layers), vlm.hidden_size)
    for each in edits:
        if each is not None and each.sample_ids is not None:
            raise InputError("sample-level vectors: choose a sample's own with edit.row(id)")
        if each is not None and tuple(each.add.shape) != size:
            raise InputError(
                f"the edit is (layers, hidden) = {tuple(each.add.shape)}, the model is {size}"
            )
    nothing = torch.zeros(size)
    reach: dict[str, Tensor] = {
        tokens: torch.stack(
            [
                e.add.float().cpu() if e is not None and e.tokens == tokens else nothing
                for e in edits
            ]
        )
        for tokens in ("all", "last")
    }
    with ExitStack() as handles:
        for i, layer in enumerate(vlm.layers):
            everywhere, last = reach["all"][:, i], reach["last"][:, i]
            if everywhere.any() or last.any():
                handle = layer.register_forward_hook(_LayerEdit(everywhere, last))
                handles.callback(handle.remove)
        yield


@contextmanager
def record(vlm: VLM) -> Iterator[list[Tensor]]:
    """Record each decoder layer's output at the last token of every row.

    Yields:
        A list that a forward pass fills with one float32 ``(rows, hidden)`` a layer, in order, on
        the CPU. It is emptied when a new pass reaches the first layer. Edits applied before are
        seen.
    """
    states: list[Tensor] = []

    def keep(index: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if index == 0:
                states.clear()
            whole = output[0] if isinstance(output, tuple) else output
            states.append(whole[:, -1].detach().float().cpu())

        return hook

    with ExitStack() as handles:
        for i, layer in enumerate(vlm.layers):
            handles.callback(layer.register_forward_hook(keep(i)).remove)
        yield states
