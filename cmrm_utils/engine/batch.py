"""Batches: the rows' shared beginnings, their cache, and decoding one token at a time.

A decoding batch of transformers keeps its rows to the end. Here a row leaves when its response is
complete, and another row takes its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache

from cmrm_utils.edits import Edit
from cmrm_utils.engine.cache import SPARE, Pair, RoomyLayer, can_share, new_cache, stacked
from cmrm_utils.engine.cores import CORES
from cmrm_utils.engine.inputs import Prompt, Tokens, running_alone, token_kinds
from cmrm_utils.errors import InputError
from cmrm_utils.hooks import Steering
from cmrm_utils.models import VLM
from cmrm_utils.processors import joined


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt to run under its trial's edit.

    Attributes:
        prompt: the prompt.
        tokens: its tokens.
    """

    prompt: Prompt
    tokens: Tokens

    @cached_property
    def edit(self) -> Edit | None:
        """None for no edit."""
        return self.prompt.trial.active_edit

    @property
    def shared(self) -> int:
        """The number of first tokens that other rows share; 0 for none."""
        grown = len(self.tokens) - len(self.prompt.ids) if self.prompt.shares_image else 0
        return self.prompt.shared + grown


class Beginnings:
    """Keys and values of shared beginnings, kept while further rows need them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], list[Pair]] = {}
        self._names: list[tuple[Any, ...]] = []
        self._stack: list[Pair] = []

    def cache(self, vlm: VLM, steer: Steering, rows: Sequence[Row], new: int, room: int) -> Cache:
        """A cache of the rows' beginnings, left-padded, for ``new`` tokens and ``room`` more.

        With ``room`` 0, rows with the same beginnings use the same buffers again: only the tokens
        after the beginnings are overwritten.
        """
        names = [row.prompt.beginning for row in rows]
        width = max(row.shared for row in rows)
        stack = self._stack
        if names != self._names[: len(names)] or stack[0][0].shape[2] < width + new + room:
            spare = -(-new // SPARE) * SPARE
            pairs = self._of(vlm, steer, rows)
            stack = stacked(pairs, width, spare + room)
            self._names, self._stack = ([], []) if room else (names, stack)
        layers: list[Any] = [RoomyLayer((k[: len(rows)], v[: len(rows)]), width) for k, v in stack]
        return Cache(layers=layers)

    def _of(self, vlm: VLM, steer: Steering, rows: Sequence[Row]) -> list[list[Pair]]:
        """Each row's keys and values ``(1, heads, shared, size)``, by layer."""
        wanted = {row.prompt.beginning: row for row in rows}
        self._kept = {name: pairs for name, pairs in self._kept.items() if name in wanted}
        if missing := {name: row for name, row in wanted.items() if name not in self._kept}:
            first = list(missing.values())
            cache = DynamicCache()
            stretches = [(row.tokens, 0, row.shared) for row in first]
            inputs, kinds = _inputs(vlm, stretches, whole=False)
            steer.rows([row.edit for row in first], kinds)
            vlm.core(**inputs, past_key_values=cache, use_cache=True)
            width, layers = inputs["input_ids"].shape[1], cast("list[Any]", cache.layers)
            for i, (name, row) in enumerate(missing.items()):
                own = (slice(i, i + 1), slice(None), slice(width - row.shared, None))
                self._kept[name] = [(layer.keys[own], layer.values[own]) for layer in layers]
        return [self._kept[row.prompt.beginning] for row in rows]


def _inputs(
    vlm: VLM, stretches: Sequence[tuple[Tokens, int, int]], *, whole: bool
) -> tuple[dict[str, Any], Tensor]:
    """Model inputs for each row's tokens from a start to an end, and the kinds of these tokens.

    Args:
        vlm: the model.
        stretches: each row's tokens, start and end. Rows are padded on the left.
        whole: whether they end where the prompts end.
    """
    width = max(end - start for _, start, end in stretches)
    first = stretches[0][0].positions
    ids = torch.full((len(stretches), width), vlm.tokenizer.pad_token_id)
    positions = first.new_zeros((*first.shape[:-1], len(stretches), width))
    mask = torch.zeros(len(stretches), width, dtype=torch.long)
    images = []
    for i, (tokens, start, end) in enumerate(stretches):
        ids[i, width - (end - start) :] = tokens.ids[start:end]
        positions[..., i, width - (end - start) :] = tokens.positions[..., start:end]
        mask[i, width - (end - start) :] = 1
        if tokens.image is not None and start <= tokens.image_start < end:
            images.append(tokens.image)
    tensors = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    for name in stretches[0][0].kinds:
        tensors[name] = filled = torch.zeros_like(ids)
        for i, (tokens, start, end) in enumerate(stretches):
            filled[i, width - (end - start) :] = tokens.kinds[name][start:end]
    kinds = token_kinds(vlm, tensors, whole=whole)
    inputs: dict[str, Any] = {name: value.to(vlm.device) for name, value in tensors.items()}
    if images:
        inputs["mm_encoder_outputs"] = joined(images)
    return inputs, kinds


def run_prompts(
    vlm: VLM,
    steer: Steering,
    rows: Sequence[Row],
    beginnings: Beginnings,
    *,
    head: bool,
    room: int = 0,
) -> tuple[Cache | None, Tensor, Tensor | None]:
    """Run whole prompts; of rows with shared beginnings, only the tokens after those.

    Args:
        vlm: the model.
        steer: the steering that is hooked to it.
        rows: all with a shared beginning, or all without; or one that runs alone.
        beginnings: the ones that are kept.
        head: whether to compute logits.
        room: number of tokens that the cache must have room for; 0 for no cache.

    Returns:
        The cache, the mask ``(rows, tokens)`` of its tokens, and the last tokens' logits.
    """
    model = vlm.model if head else vlm.core
    logits = {"logits_to_keep": 1} if head else {}
    if (alone := rows[0].tokens.whole) is not None:
        steer.rows([rows[0].edit], token_kinds(vlm, alone))
        with running_alone(rows[0].prompt.trial):
            out = model(**alone, **logits, use_cache=False)
        return None, alone["attention_mask"], out.logits[:, -1] if head else None
    starts = [row.shared for row in rows]
    stretches = [(row.tokens, n, len(row.tokens)) for row, n in zip(rows, starts, strict=True)]
    inputs, kinds = _inputs(vlm, stretches, whole=True)
    mask = inputs["attention_mask"]
    cache: Cache | None = None
    if any(starts):
        cache = beginnings.cache(vlm, steer, rows, mask.shape[1], room)
        missing = max(starts) - torch.tensor(starts, device=mask.device)
        before = torch.arange(max(starts), device=mask.device) >= missing[:, None]
        inputs["attention_mask"] = mask = torch.cat([before.long(), mask], dim=1)
    elif room:
        cache = new_cache(vlm)
    steer.rows([row.edit for row in rows], kinds)
    out = model(**inputs, **logits, past_key_values=cache, use_cache=cache is not None)
    return cache, mask, out.logits[:, -1] if head else None


def tokens_at(vlm: VLM, rows: Sequence[Row], at: str | int) -> Tensor:
    """Which tokens of left-padded whole prompts are wanted: bool ``(rows, tokens)``.

    Raises:
        InputError: a prompt has none.
    """
    mask = torch.zeros(len(rows), max(len(row.tokens) for row in rows), dtype=torch.bool)
    for row, wanted in zip(rows, mask, strict=True):
        count, trial = len(row.tokens), row.prompt.trial
        if isinstance(at, int):
            if not -count <= at < count:
                raise InputError(
                    f"sample {trial.sample.id} (image {trial.image}): its prompt has {count} "
                    f"tokens, so it has none at {at}"
                )
            wanted[at if at < 0 else at - count] = True
        elif trial.has_image:
            wanted[-count:] = row.tokens.ids == vlm.model.config.image_token_id
        else:
            raise InputError(
                f"sample {trial.sample.id} (image {trial.image}): its prompt has no image, so it "
                "has no states at image tokens"
            )
    return mask


def states_of(chosen: Tensor, states: Tensor, *, mean: bool) -> Tensor:
    """The chosen tokens' states ``(tokens of all rows, hidden)``, or the mean of each row's."""
    found = states[chosen.to(states.device)]
    if not mean:
        return found.cpu()  # by layer, since all layers' image tokens may be more than a GPU holds
    return torch.stack([each.float().mean(0) for each in found.split(chosen.sum(1).tolist())])


def log_odds(logits: Tensor, openers: Sequence[int]) -> Tensor:
    """Log-odds in nats that the next token is one of the openers.

    Args:
        logits: ``(rows, vocabulary)``.
        openers: token ids.

    Returns:
        float32 ``(rows,)``.
    """
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[list(openers)] = True
    values, none = logits.float(), float("-inf")
    others = values.masked_fill(inside, none).logsumexp(-1)
    return values.masked_fill(~inside, none).logsumexp(-1) - others


class Batch:
    """Rows that are being decoded.

    Args:
        vlm: the model.
        steer: the steering that is hooked to it.
        rows: the rows.
        names: a number for each row.
        beginnings: the ones that are kept.
        max_new_tokens: the most tokens that a row generates.
    """

    def __init__(
        self,
        vlm: VLM,
        steer: Steering,
        rows: Sequence[Row],
        names: Sequence[int],
        beginnings: Beginnings,
        max_new_tokens: int,
    ) -> None:
        self._vlm = vlm
        self._steer = steer
        self.names = list(names)
        self._edits = [row.edit for row in rows]
        CORES.give_way()
        cache, mask, logits = run_prompts(
            vlm, steer, rows, beginnings, head=True, room=max_new_tokens
        )
        assert cache is not None
        assert logits is not None
        self._cache, self._mask, self._logits = cache, mask, logits
        following = [int(row.tokens.positions.max()) + 1 for row in rows]
        self._next = torch.tensor(following, device=mask.device)
        self._axes = rows[0].tokens.positions.shape[:-1]
        self._layers: list[Any] = cache.layers
        text = vlm.model.config.get_text_config(decoder=True)
        self._own_mask = text._attn_implementation == "sdpa" and can_share(vlm)
        self.broken = torch.zeros(len(rows), dtype=torch.bool, device=mask.device)
        steer.rows(self._edits)  # from here on one generated token a pass

    def __len__(self) -> int:
        return len(self.names)

    def choose(self) -> Tensor:
        """Each row's likeliest next token ``(rows,)``; rows with NaN logits become ``broken``."""
        token = self._logits.argmax(-1)
        self.broken |= self._logits.gather(-1, token[:, None])[:, 0].isnan()
        return token

    def log_odds(self, openers: Sequence[int]) -> list[float]:
        """Log-odds by row that the next token is one of the openers; before the first step."""
        return log_odds(self._logits, openers).tolist()

    def feed(self, token: Tensor) -> None:
        """Run one step on the chosen tokens."""
        CORES.give_way()
        self._mask = mask = torch.cat([self._mask, self._mask.new_ones(len(self), 1)], dim=1)
        if self._own_mask:  # in its own form, or transformers inspects it
            mask = mask[:, None, None].bool()
        self._logits = self._vlm.model(
            input_ids=token[:, None],
            position_ids=self._next[:, None].expand(*self._axes, -1, 1),
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._next = self._next + 1

    def keep(self, stay: Sequence[int]) -> Tensor:
        """Keep only these rows, and only tokens that one of them needs.

        Returns:
            The old index of each row: the last rows fill the places of those that left.
        """
        staying = set(stay)
        holes = [i for i in range(len(stay)) if i not in staying]
        movers = [i for i in stay if i >= len(stay)]
        places = list(range(len(stay)))
        for hole, mover in zip(holes, movers, strict=True):
            places[hole] = mover
        order = torch.tensor(places, device=self._mask.device)
        mask = self._mask[order]
        first = int(mask.any(0).int().argmax())
        for layer in self._layers:
            layer.keep(torch.tensor(holes), torch.tensor(movers), len(stay), first)
        self._mask = mask[:, first:]
        self._logits, self._next = self._logits[order], self._next[order]
        self.broken = self.broken[order]
        self.names = [self.names[i] for i in places]
        self._edits = [self._edits[i] for i in places]
        self._steer.rows(self._edits)
        return order

    def join(self, other: "Batch") -> None:
        """Append another batch's rows."""
        width = max(self._mask.shape[1], other._mask.shape[1])
        masks = [functional.pad(b._mask, (width - b._mask.shape[1], 0)) for b in (self, other)]
        self._mask = torch.cat(masks)
        for mine, new in zip(self._layers, other._layers, strict=True):
            mine.join(new, width)
        self._logits = torch.cat([self._logits, other._logits])
        self._next = torch.cat([self._next, other._next])
        self.broken = torch.cat([self.broken, other.broken])
        self.names += other.names
        self._edits += other._edits
        self._steer.rows(self._edits)
