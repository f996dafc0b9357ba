"""All hooks are registered here: :func:`record` reads states, :func:`apply` edits them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from cmrm_utils.edits import GENERATED, LAST, PLACES, REACH, TEXT, WEIGHTS, Edit, Place
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM

Move = Callable[[Tensor], Tensor]
"""From states to edited states."""


_ANGLE = WEIGHTS.index("angle")

_REACHED = {
    name: torch.tensor([kind in kinds for kind in range(5)]) for name, kinds in REACH.items()
}


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows whose edits touch the same part of a pass: the whole, its end, or a mask's tokens.

    Attributes:
        end: whether they touch only the last token.
        mask: bool ``(rows, tokens, 1)``, or None.
        added: each row's number of vectors in the bank; one entry if all rows have the same.
        projected: each row's number of directions, likewise.
        reference: each row's number of references, likewise.
    """

    end: bool
    mask: Tensor | None
    added: Tensor
    projected: Tensor
    reference: Tensor


def _move(part: _Part, bank: "_Bank", layer: int, like: Tensor) -> Move | None:
    """What a part does at a layer whose states are ``like`` these; None if it does nothing there.

    It makes new tensors and changes none in place: recorded states must stay as they were read.
    """
    # The device is only known from the states: offloaded parameters are on "meta".
    device = like.device
    add, project = bank.added[part.added, layer][:, None], bank.projected[part.projected, layer]
    directions = project.to(device) if project.any() else None
    if not add.any() and directions is None:
        return None
    mask = None if part.mask is None else part.mask.to(device)
    addition = _addition(part, bank, layer, add, like) if add.any() else None

    def moved(states: Tensor) -> Tensor:
        if directions is not None:
            exact = states.float()
            component = (exact @ directions.mT) @ directions
            states = (exact - component).to(states.dtype)
        return states if addition is None else addition(states)

    if part.end:
        return lambda states: torch.cat([states[:, :-1], moved(states[:, -1:])], dim=1)
    if mask is not None:
        return lambda states: torch.where(mask, moved(states), states)
    return moved


def _addition(part: _Part, bank: "_Bank", layer: int, add: Tensor, like: Tensor) -> Move:
    """States with the vectors ``add`` ``(rows, 1, hidden)`` added, each by its edit's weight."""
    weights = bank.weights[part.added].to(like.device)[:, None, None]
    if not weights.any():
        vectors = add.to(like.device, like.dtype)
        return lambda states: states + vectors
    exact_add = add.to(like.device)
    reference = bank.references[part.reference, layer][:, None].to(like.device)

    def weighted(states: Tensor) -> Tensor:
        exact = states.float()
        angle = functional.cosine_similarity(exact - reference, -exact_add, dim=-1)[..., None]
        factor = torch.where(weights == _ANGLE, angle.clamp(min=0), 1) * exact.norm(
            dim=-1, keepdim=True
        )
        return (exact + torch.where(weights > 0, factor, 1) * exact_add).to(states.dtype)

    return weighted


class _Bank:
    """The vectors of all edits at one place, numbered; number 0 stands for no edit."""

    def __init__(self, vlm: VLM, place: Place, edits: Sequence[Edit]) -> None:
        size = (len(vlm.layers), vlm.width(place))
        self.modules = vlm.modules(place)
        self.numbers: dict[str, tuple[int, int, int]] = {}
        added, projected = [torch.zeros(size)], [torch.zeros(size[0], 0, size[1])]
        references, weights = [torch.zeros(size)], [0]
        known: dict[Any, int] = {}  # many samples' edits have the same projection, or reference
        for edit in edits:
            if edit.digest in self.numbers:
                continue
            if edit.sample_ids is not None:
                raise InputError("sample-level vectors: choose a sample's own with edit.row(id)")
            if tuple(edit.add.shape) != size:
                raise InputError(
                    f"the edit is (layers, hidden) = {tuple(edit.add.shape)}, "
                    f"the model is {size} at place {place!r}"
                )
            out = 0
            if edit.project is not None and edit.projection:
                out = known.setdefault(edit.projection, len(projected))
                if out == len(projected):
                    projected.append(edit.project.detach().float().cpu())
            held = 0
            if edit.reference is not None:
                held = known.setdefault(id(edit.reference), len(references))
                if held == len(references):
                    references.append(edit.reference.detach().float().cpu())
            self.numbers[edit.digest] = (len(added), out, held)
            added.append(edit.added.cpu())
            weights.append(WEIGHTS.index(edit.weight))
        self.added, self.weights = torch.stack(added), torch.tensor(weights)
        self.references = torch.stack(references)
        most = max(each.shape[1] for each in projected)
        self.projected = torch.stack(
            [functional.pad(each, (0, 0, 0, most - each.shape[1])) for each in projected]
        )
        self.layers = [
            i for i in range(size[0]) if self.added[:, i].any() or self.projected[:, i].any()
        ]


class Steering:
    """The edit of each row of the batches to come; :func:`steering` hooks it to the model.

    Rows can be set again between forward passes, as rows leave a batch and join it.

    Args:
        vlm: the model.
        edits: all edits that rows will have.

    Attributes:
        banks: the vectors of the edits, by place.

    Raises:
        InputError: a sample-level edit without a chosen row, an edit of another model's size, or
            of a place that the model does not have.
    """

    def __init__(self, vlm: VLM, edits: Sequence[Edit | None]) -> None:
        active = [edit for edit in edits if edit is not None and not edit.empty]
        at = {place: [edit for edit in active if edit.place == place] for place in PLACES}
        self.banks = {place: _Bank(vlm, place, some) for place, some in at.items() if some}
        self._rows = 0
        self._width: int | None = None
        self._plans: dict[tuple[Place, bool], list[_Part]] = {}
        self._placed: dict[tuple[Place, bool, int], list[Move]] = {}

    def rows(self, edits: Sequence[Edit | None], kinds: Tensor | None = None) -> None:
        """Set each row's edit from the next forward pass on.

        Args:
            edits: one for each row; a single one serves any number of rows.
            kinds: the kinds of the prompts' tokens (:data:`PADDING` and so on), ``(rows,
                tokens)`` on the CPU; a pass of another width has one generated token per row.
                Without it, a pass of several tokens counts as whole prompts, which end with
                their last tokens, and a pass of one as a generated token per row.
        """
        self._rows = len(edits)
        self._width = None if kinds is None else kinds.shape[1]
        prompt = torch.tensor([[TEXT, LAST]]) if kinds is None else kinds
        generated = torch.tensor([[GENERATED]])
        changes = [None if e is None or e.empty else e for e in edits]
        entries = [e and (e.place, self.banks[e.place].numbers[e.digest]) for e in changes]
        for place in self.banks:
            numbers = [one[1] if one and one[0] == place else (0, 0, 0) for one in entries]
            self._plans[place, True] = self._plan(numbers, edits, prompt)
            self._plans[place, False] = self._plan(numbers, edits, generated)
        self._placed.clear()

    @staticmethod
    def _plan(
        numbers: Sequence[tuple[int, int, int]], edits: Sequence[Edit | None], kinds: Tensor
    ) -> list[_Part]:
        """The edits of a pass over tokens of these kinds, in as few parts as possible."""
        chosen = torch.tensor(numbers, dtype=torch.long).view(-1, 3)
        reached = torch.stack([_REACHED["all" if e is None else e.tokens] for e in edits])
        mask = reached.gather(1, kinds.long().expand(len(edits), -1))
        mask &= chosen.any(1, keepdim=True)
        whole = mask.all(1)
        end = mask[:, -1] & (mask.sum(1) == 1) & ~whole
        some = mask.any(1) & ~whole & ~end
        parts = []
        for rows in (whole, end, some):
            if rows.any():
                added, projected, reference = (
                    one[:1] if bool((one == one[0]).all()) else one
                    for one in torch.where(rows[:, None], chosen, 0).unbind(1)
                )
                cut = (mask & rows[:, None])[..., None] if rows is some else None
                parts.append(_Part(rows is end, cut, added, projected, reference))
        return parts

    def _moves(self, place: Place, layer: int, states: Tensor) -> list[Move]:
        """The moves at a layer, on its device; made once, until rows are set again."""
        width = states.shape[1]
        prompt = width > 1 if self._width is None else width == self._width
        if (place, prompt, layer) not in self._placed:
            plan, bank = self._plans[place, prompt], self.banks[place]
            made = (_move(part, bank, layer, states) for part in plan)
            self._placed[place, prompt, layer] = [move for move in made if move]
        return self._placed[place, prompt, layer]

    def edited(self, place: Place, layer: int, states: Tensor) -> Tensor:
        """The states at one place of one layer, edited."""
        if self._rows not in (1, states.shape[0]):
            raise InputError(
                f"an edit of {self._rows} rows met a batch of {states.shape[0]}; "
                "beams and several return sequences are not supported"
            )
        for move in self._moves(place, layer, states):
            states = move(states)
        return states


def _hooked(
    module: nn.Module, place: Place, see: Callable[[Tensor], Tensor | None]
) -> RemovableHandle:
    """Call ``see`` with the states at a place in every pass; what it returns replaces them."""

    def before(_module: nn.Module, args: Any) -> Any:
        new = see(args[0])
        return None if new is None else (new, *args[1:])

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        whole = isinstance(output, tuple)
        new = see(output[0] if whole else output)
        return (new, *output[1:]) if whole and new is not None else new

    if place == "heads":  # before the projection that mixes them
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(after)


@contextmanager
def steering(vlm: VLM, edits: Sequence[Edit | None]) -> Iterator[Steering]:
    """Hook every layer that one of ``edits`` changes; the hooks go afterwards, also on an error.

    Yields:
        The :class:`Steering` whose rows must be set before the first forward pass.
    """
    steer = Steering(vlm, edits)
    with ExitStack() as handles:
        for place, bank in steer.banks.items():
            for layer in bank.layers:
                edit = partial(steer.edited, place, layer)
                handles.enter_context(_hooked(bank.modules[layer], place, edit))
        handles.enter_context(contiguous_head(vlm))
        yield steer


@contextmanager
def contiguous_head(vlm: VLM) -> Iterator[None]:
    """Make the LM head's input contiguous.

    The last token's states of several rows (``logits_to_keep=1``) are strided. For a linear layer
    on strided input, torch runs a batched product, which in bfloat16 on a CPU copies the whole
    vocabulary matrix for each row.
    """

    def gather(_module: nn.Module, args: Any) -> Any:
        return (args[0].contiguous(), *args[1:]) if args else None

    head = vlm.model.get_output_embeddings()
    with nullcontext() if head is None else head.register_forward_pre_hook(gather):
        yield


@contextmanager
def apply(vlm: VLM, edit: Edit | Sequence[Edit | None] | None) -> Iterator[None]:
    """Edit a model's states within a ``with`` block; its hooks go afterwards, also on an error.

    It works with any forward pass and with ``generate``. A pass of several tokens counts as whole
    prompts, which must be left-padded if the edit touches their last tokens; a pass of one counts
    as a generated token. Which tokens are an image's is not known here, only to
    :func:`cmrm_utils.engine.loops.generate`.

    Example:
        >>> vlm = load_vlm("organism")
        >>> inputs = vlm.inputs(["How do I boil water?"], [None])
        >>> push = Edit(torch.ones(len(vlm.layers), vlm.hidden_size), strength=0.5)
        >>> with apply(vlm, push):
        ...     edited = vlm.model(**inputs).logits
        >>> torch.equal(edited, vlm.model(**inputs).logits)
        False

    Args:
        vlm: the model.
        edit: one edit for all rows, or one (or None) for each row of the batches to come.

    Raises:
        InputError: a sample-level edit without a chosen row; an edit of another model's size, of
            a place that the model does not have, or of image or text tokens; from inside, a batch
            with another number of rows (as with beams).
    """
    edits = [edit] if isinstance(edit, Edit) or edit is None else list(edit)
    if unknown := {e.tokens for e in edits if e and e.tokens in ("image", "text")}:
        raise InputError(
            f"apply() is given no token ids, so it cannot tell which are {' or '.join(unknown)} "
            "tokens; run such an edit as trials"
        )
    with steering(vlm, edits) as steer:
        steer.rows(edits)
        yield


def _last(states: Tensor) -> Tensor:
    return states[:, -1]


@contextmanager
def record(
    vlm: VLM, place: Place = "layer", *, part: Callable[[Tensor], Tensor] = _last
) -> Iterator[list[Tensor]]:
    """Record the states at a place of each decoder layer, at the last token of every row.

    Args:
        vlm: the model.
        place: one of :data:`cmrm_utils.edits.PLACES`.
        part: what to keep of a layer's states ``(rows, tokens, hidden)``, if not the last token's.

    Yields:
        A list that a forward pass fills with one float32 ``(rows, hidden)`` per layer (or the
        ``part``), in order, on the layer's device. It is emptied when a new pass reaches the first
        layer. Edits that were applied before are included.

    Raises:
        InputError: the model does not have the place.
    """
    states: list[Tensor] = []

    def keep(layer: int, whole: Tensor) -> None:
        if layer == 0:
            states.clear()
        # A copy: a view would keep the states of all tokens alive.
        states.append(part(whole).detach().to(torch.float32, copy=True))

    with ExitStack() as handles:
        for layer, module in enumerate(vlm.modules(place)):
            handles.enter_context(_hooked(module, place, partial(keep, layer)))
        yield states
