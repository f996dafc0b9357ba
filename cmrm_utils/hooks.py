"""The only file that registers a hook: :func:`record` reads layers, :func:`apply` edits them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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


class Steering:
    """Which row of the batches to come is edited how; :func:`steering` hooks it to the layers.

    Rows can be given anew between forward passes, so that they may leave a batch and join it.

    Args:
        vlm: the model.
        edits: every edit that rows will ask for.

    Raises:
        InputError: sample-level vectors without a row chosen, or an edit of another model's size.
    """

    def __init__(self, vlm: VLM, edits: Sequence[Edit | None]) -> None:
        size = (len(vlm.layers), vlm.hidden_size)
        self._bank: dict[str, int] = {}
        added = [torch.zeros(size)]
        for edit in edits:
            if edit is None or edit.empty or edit.digest in self._bank:
                continue
            if edit.sample_ids is not None:
                raise InputError("sample-level vectors: choose a sample's own with edit.row(id)")
            if tuple(edit.add.shape) != size:
                raise InputError(
                    f"the edit is (layers, hidden) = {tuple(edit.add.shape)}, the model is {size}"
                )
            self._bank[edit.digest] = len(added)
            added.append(edit.add.detach().float().cpu())
        self._added = torch.stack(added)
        self.layers = [i for i in range(size[0]) if self._added[:, i].any()]
        self._rows = 0
        self._chosen: tuple[Tensor, Tensor] = (torch.zeros(0), torch.zeros(0))
        self._placed: dict[int, tuple[Tensor | None, Tensor | None]] = {}

    def rows(self, edits: Sequence[Edit | None], *, last: bool = True) -> None:
        """Say each row's edit from the next forward pass on; one edit is for any number of rows.

        Args:
            edits: one a row.
            last: whether the pass ends with each prompt's last token; a pass over the beginning of
                a prompt does not, and edits of ``tokens="last"`` leave it alone.
        """
        self._rows = len(edits)
        found = [0 if e is None or e.empty else self._bank[e.digest] for e in edits]
        reach = [e is not None and e.tokens == "last" for e in edits]
        self._chosen = (
            torch.tensor([0 if late else i for i, late in zip(found, reach, strict=True)]),
            torch.tensor([i if late and last else 0 for i, late in zip(found, reach, strict=True)]),
        )
        self._placed.clear()

    def _vectors(self, layer: int, states: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """A layer's vectors ``(rows, 1, hidden)``, for all tokens and for the last one."""
        if layer not in self._placed:
            # Only here is the layer's device known: under offload its parameters are on "meta".
            bank = self._added[:, layer]
            everywhere, last = (
                bank[rows][:, None].to(states.device, states.dtype) if rows.any() else None
                for rows in self._chosen
            )
            self._placed[layer] = (everywhere, last)
        return self._placed[layer]

    def hook(self, layer: int) -> Callable[[nn.Module, Any, Any], Any]:
        """The forward hook of one decoder layer."""

        def edit(_module: nn.Module, _args: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            if self._rows not in (1, states.shape[0]):
                raise InputError(
                    f"an edit of {self._rows} rows met a batch of {states.shape[0]}; "
                    "beams and several return sequences are not supported"
                )
            everywhere, last = self._vectors(layer, states)
            # New tensors, never in place: recorded states must not change behind a reader's back.
            edited = states if everywhere is None else states + everywhere
            if last is not None:
                if states.shape[1] == 1:
                    edited = edited + last
                else:
                    edited = torch.cat([edited[:, :-1], edited[:, -1:] + last], dim=1)
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return edit


@contextmanager
def steering(vlm: VLM, edits: Sequence[Edit | None]) -> Iterator[Steering]:
    """Hook the layers that any of ``edits`` changes; whatever happens inside, the hooks go after.

    Yields:
        What says which row is edited how; until it is told, no row may come.
    """
    made = Steering(vlm, edits)
    with ExitStack() as handles:
        for layer in made.layers:
            handles.callback(vlm.layers[layer].register_forward_hook(made.hook(layer)).remove)
        yield made


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
    with steering(vlm, edits) as made:
        made.rows(edits)
        yield


@contextmanager
def record(vlm: VLM) -> Iterator[list[Tensor]]:
    """Record each decoder layer's output at the last token of every row.

    Yields:
        A list that a forward pass fills with one float32 ``(rows, hidden)`` a layer, in order, on
        the layer's device. It is emptied when a new pass reaches the first layer. Edits applied
        before are seen.
    """
    states: list[Tensor] = []

    def keep(index: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if index == 0:
                states.clear()
            whole = output[0] if isinstance(output, tuple) else output
            # A copy: a view would keep the states of all tokens alive.
            states.append(whole[:, -1].detach().to(torch.float32, copy=True))

        return hook

    with ExitStack() as handles:
        for i, layer in enumerate(vlm.layers):
            handles.callback(layer.register_forward_hook(keep(i)).remove)
        yield states
