"""Trials in, hidden states or responses out.

Trials of any kind share a batch: each row has its own prompt, image (or none) and edit. Equal
trials run once. What trials share is computed once: an image's features, and the keys and values
of a common prefix, if the edits are equal or leave the prefix alone. A row leaves its batch when
its response is complete, and another takes its place.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from cmrm_utils.edits import Place
from cmrm_utils.engine.batch import (
    Batch,
    Beginnings,
    Row,
    log_odds,
    run_prompts,
    states_of,
    tokens_at,
)
from cmrm_utils.engine.cache import can_share
from cmrm_utils.engine.cores import CORES
from cmrm_utils.engine.inputs import Prompt, inputs_alone, renew_images, running_alone, token_kinds
from cmrm_utils.engine.memory import Size
from cmrm_utils.engine.plan import distinct, in_order
from cmrm_utils.errors import InputError, unknown
from cmrm_utils.hooks import record, steering
from cmrm_utils.models import VLM
from cmrm_utils.store import Response, Responses
from cmrm_utils.trials import Trial

STATES_ROWS = 16
"""Rows in a batch that decodes no token; more are not faster.

It does not depend on the model's ``batch_size``: the last digits of states depend on the rows of
their batch, so machines with other batch sizes could not agree on vectors, nor on trial ids.
"""


PACK = 4
"""Pack size in batches. A killed run repeats at most one pack."""


AT = ("last", "image", "image mean")
"""Names of the tokens whose states :func:`hidden_states` gives."""


LOOK_EVERY = 8
"""On a GPU, check for finished rows only every N steps: each check synchronises."""


def progress_bar(total: int, title: str, progress: bool, *, unit: str = "trial") -> Any:
    """A bar that counts up to a total and vanishes at the end; nothing unless ``progress``."""
    options: Any = {} if progress else {"disable": True}  # TQDM_DISABLE=1 silences it too
    return tqdm(total=total, desc=title, unit=unit, leave=False, **options)


def _in_batches(
    vlm: VLM,
    trials: Sequence[Trial],
    batch_size: int | None,
    run: Callable[[list[Row], Beginnings], Sequence[Tensor] | Tensor],
    *,
    title: str,
    progress: bool = False,
    share: bool = True,
) -> list[Tensor]:
    """Each trial's result. ``run`` takes a batch; a batch that does not fit is halved."""
    ids, unique = distinct(trials)
    size = Size(vlm, STATES_ROWS if batch_size is None else batch_size)
    beginnings = Beginnings()
    renew_images(vlm, unique.values())
    queue = deque(in_order(vlm, unique, share=share))
    results: dict[str, Tensor] = {}

    def batch() -> Sequence[Tensor] | Tensor:
        size.begin()
        return run(size.entering(queue, size.rows), beginnings)

    with progress_bar(len(unique), title, progress) as bar:
        while queue:
            if (values := size.attempt(batch)) is None:
                continue
            for value in values:
                results[queue.popleft().id] = value
            bar.update(len(values))
    return [results[key] for key in ids]


@overload
def hidden_states(
    vlm: VLM,
    trials: Sequence[Trial],
    *,
    at: Literal["last", "image mean"] | int = "last",
    place: Place = "layer",
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor: ...


@overload
def hidden_states(
    vlm: VLM,
    trials: Sequence[Trial],
    *,
    at: Literal["image"],
    place: Place = "layer",
    batch_size: int | None = None,
    progress: bool = False,
) -> list[Tensor]: ...


@torch.inference_mode()
def hidden_states(
    vlm: VLM,
    trials: Sequence[Trial],
    *,
    at: Literal["last", "image", "image mean"] | int = "last",
    place: Place = "layer",
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor | list[Tensor]:
    """The residual stream at each decoder layer's output, at the last prompt token or at others.

    Memory grows with trials x layers x hidden only: no logits, and no states of other tokens.

    Args:
        vlm: the model.
        trials: what to run; equal trials run once.
        at: the tokens. ``last``: the prompt's last. ``image``: all of its image. ``image mean``:
            their mean. A number: that token of the prompt as the processor writes it, image tokens
            counted, from 0, or from the end if negative (-1 is ``last``).
        place: where in a layer (:data:`cmrm_utils.edits.PLACES`), as for heads' outputs instead.
        batch_size: rows in a batch; by default :data:`STATES_ROWS`.
        progress: show a bar.

    Returns:
        float32 ``(trials, layers, hidden)`` on the CPU, under each trial's edit; for ``image`` a
        list of ``(image tokens, layers, hidden)``, one a trial.

    Raises:
        InputError: the model does not have the place, or a prompt does not have such tokens.
    """
    if not isinstance(at, int) and at not in AT:
        raise unknown("no tokens", at, [*AT, "a number"])
    last, mean, title = at in ("last", -1), at == "image mean", "hidden states"

    def run(rows: list[Row], beginnings: Beginnings) -> Sequence[Tensor] | Tensor:
        where = {} if last else {"part": partial(states_of, tokens_at(vlm, rows, at), mean=mean)}
        edits = [row.edit for row in rows]
        with steering(vlm, edits) as steer, record(vlm, place, **where) as states:
            run_prompts(vlm, steer, rows, beginnings, head=False)
        found = torch.stack([state.cpu() for state in states], dim=1)
        return found.split(tokens_at(vlm, rows, at).sum(1).tolist()) if at == "image" else found

    # Tokens of a shared beginning run once, apart from the rows that they belong to.
    states = _in_batches(vlm, trials, batch_size, run, title=title, progress=progress, share=last)
    if at == "image":
        return states
    return torch.stack(states) if states else torch.empty(0, len(vlm.layers), vlm.width(place))


@torch.inference_mode()
def first_logits(vlm: VLM, trials: Sequence[Trial], *, batch_size: int | None = None) -> Tensor:
    """Logits of the first response token, float32 ``(trials, vocabulary)`` on the CPU."""

    def run(rows: list[Row], beginnings: Beginnings) -> Tensor:
        with steering(vlm, [row.edit for row in rows]) as steer:
            _, _, logits = run_prompts(vlm, steer, rows, beginnings, head=True)
        assert logits is not None
        return logits.float().cpu()

    logits = _in_batches(vlm, trials, batch_size, run, title="logits")
    return torch.stack(logits) if logits else torch.empty(0, vlm.vocabulary)


def generate(
    vlm: VLM,
    trials: Sequence[Trial],
    *,
    max_new_tokens: int,
    out: Path | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> list[str]:
    """Greedy responses.

    Trials run in packs, which are cut from the list as it was at the first call. A run that was
    killed runs the same packs again, so no number depends on where it stopped.

    Args:
        vlm: the model.
        trials: what to run; equal trials run once.
        max_new_tokens: the length at which a response is cut.
        out: a JSON-lines file that responses stream to; a later call resumes from it.
        batch_size: rows in a batch; by default the model's.
        progress: show a bar.

    Raises:
        InputError: ``out`` holds responses of another model or token limit; the model's logits
            are not numbers; a token limit or batch size below 1.
        torch.OutOfMemoryError: a trial does not fit into memory alone; it names the sample.
    """
    how: Any = {"out": out, "batch_size": batch_size, "progress": progress}
    return [each.text for each in respond(vlm, trials, max_new_tokens=max_new_tokens, **how)]


def response_header(vlm: VLM, max_new_tokens: int, openers: Sequence[int] = ()) -> dict[str, Any]:
    """What the responses of a file have in common: its first line."""
    shared: dict[str, Any] = {"model": vlm.fingerprint, "max_new_tokens": max_new_tokens}
    shared |= {"checked": False} if vlm.checked is False else {}
    return shared | ({"openers": sorted(openers)} if openers else {})


@torch.inference_mode()
def respond(
    vlm: VLM,
    trials: Sequence[Trial],
    *,
    max_new_tokens: int,
    out: Path | None = None,
    openers: Sequence[int] = (),
    batch_size: int | None = None,
    progress: bool = False,
) -> list[Response]:
    """:func:`generate`, but with each response's token ids and its end, as they are kept.

    With ``openers``, ids of tokens that open a refusal, each response has its ``log_odds`` too.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    ids, unique = distinct(trials)
    size = Size(vlm, batch_size)
    pack = PACK * size.rows
    known = Responses(out, response_header(vlm, max_new_tokens, openers))
    if unique.keys() <= known.all.keys():
        return [known.all[key] for key in ids]
    renew_images(vlm, unique.values())
    with CORES.shared(), known.appending():
        before = known.begin(str(pack), *unique)
        planned = in_order(vlm, {key: unique[key] for key in unique if key not in before})
        with progress_bar(len(planned), "responses", progress) as bar:
            task = _Task(vlm, size, max_new_tokens, openers, known, bar)
            for start in range(0, len(planned), pack):
                these = planned[start : start + pack]
                if all(each.id in known.all for each in these):
                    bar.update(len(these))
                else:
                    task.respond(these)
    return [known.all[key] for key in ids]


@dataclass(frozen=True, eq=False)
class _Task:
    """What :func:`respond` is asked for, apart from the trials.

    Attributes:
        vlm: the model.
        size: how many rows a batch has.
        max_new_tokens: the length at which a response is cut.
        openers: ids of tokens that open a refusal.
        responses: takes every response as soon as it is complete.
        bar: counts them.
        over: the ids of the trials that this call has responded to. Some may have been in
            ``responses`` before: a resumed pack runs as a whole.
    """

    vlm: VLM
    size: Size
    max_new_tokens: int
    openers: Sequence[int]
    responses: Responses
    bar: Any
    over: set[str] = field(default_factory=set)

    def respond(self, pack: Sequence[Prompt]) -> None:
        """Respond to a pack of trials, in smaller batches if memory runs out."""
        run = self._generate if self.vlm.way == "plain" else self._decode
        while left := [each for each in pack if each.id not in self.over]:
            self.size.attempt(partial(run, left))

    def _decode(self, pack: Sequence[Prompt]) -> None:
        """Respond in one batch: a row leaves when its response is complete, another one joins.

        If the cache cannot be cut, rows stay until the last of their batch is complete.
        """
        vlm, size, cuts = self.vlm, self.size, can_share(self.vlm)
        trials = [each.trial for each in pack]
        entered = 0
        size.begin()
        beginnings = Beginnings()
        look_every = 1 if vlm.device.type == "cpu" else LOOK_EVERY
        written: dict[int, list[int]] = {}
        odds: dict[int, float] = {}
        steps: list[Tensor] = []
        batch: Batch | None = None
        with steering(vlm, [trial.active_edit for trial in trials]) as steer:
            while batch or entered < len(pack):
                inside = len(batch) if batch else 0
                room = size.limit - inside if cuts or not batch else 0
                if entered < len(pack) and not steps and room >= max(1, size.limit // 4):
                    new = self.max_new_tokens
                    rows = size.entering(pack[entered:], room, inside=inside, new=new)
                    if rows:
                        names = range(entered, entered + len(rows))
                        joining = Batch(vlm, steer, rows, names, beginnings, new)
                        written |= {name: [] for name in names}
                        if self.openers:
                            odds |= zip(names, joining.log_odds(self.openers), strict=True)
                        entered += len(rows)
                        del rows  # frees their images, whose tokens are in the cache by now
                        if batch:
                            batch.join(joining)
                        else:
                            batch = joining
                assert batch is not None
                token = batch.choose()
                steps.append(token)
                if len(steps) == look_every:
                    open_rows = [i for i, name in enumerate(batch.names) if name in written]
                    broken = batch.broken.tolist()
                    for i in open_rows:
                        if broken[i]:
                            raise _no_numbers(trials[batch.names[i]])
                    columns = torch.stack(steps, dim=1).tolist()
                    steps.clear()
                    for i in open_rows:
                        name = batch.names[i]
                        written[name] += columns[i]
                        if self._complete(pack[name], written[name], odds.get(name)):
                            del written[name]
                    stay = [i for i in open_rows if batch.names[i] in written]
                    if not stay:
                        batch = None
                        continue
                    if cuts and len(batch) - len(stay) >= max(1, len(batch) // 8):
                        token = token[batch.keep(stay)]
                batch.feed(token)

    def _generate(self, pack: Sequence[Prompt]) -> None:
        """Respond to one prompt at a time, by transformers' ``generate``."""
        vlm = self.vlm
        for each in pack:
            self.size.begin(each)
            inputs, edit = inputs_alone(vlm, each.trial), each.trial.active_edit
            watch = _Watch(self.openers)
            with steering(vlm, [edit]) as steer, running_alone(each.trial):
                steer.rows([edit], token_kinds(vlm, inputs))
                whole = vlm.model.generate(
                    **inputs,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    logits_processor=LogitsProcessorList([watch]),
                )
            if torch.as_tensor(watch.broken).any():
                raise _no_numbers(each.trial)
            written = whole[0, inputs["input_ids"].shape[1] :].tolist()
            complete = self._complete(each, written, next(iter(watch.log_odds), None))
            assert complete

    @cached_property
    def _ends(self) -> set[int]:
        return self.vlm.ends

    def _complete(self, each: Prompt, ids: Sequence[int], odds: float | None) -> bool:
        """Keep the response that these token ids make; False while it is incomplete."""
        ids = ids[: self.max_new_tokens]
        stop = next((i for i, token in enumerate(ids) if token in self._ends), None)
        if stop is None and len(ids) < self.max_new_tokens:
            return False
        reply = tuple(ids if stop is None else ids[: stop + 1])
        self.responses.add(
            [(each.id, Response(self.vlm.decode(reply), reply, stop is not None, odds))]
        )
        self.over.add(each.id)
        self.bar.update()
        return True


def _no_numbers(trial: Trial) -> InputError:
    settings = dict(trial.edit.settings) if trial.edit else "no edit"
    return InputError(
        f"sample {trial.sample.id} (image {trial.image}, {settings}): the model's logits are "
        "not numbers; is the edit too strong, or the dtype too small?"
    )


class _Watch(LogitsProcessor):
    """Leaves logits as they are.

    Attributes:
        broken: marks the rows that had a NaN.
        log_odds: that each row's first token is an opener.
    """

    def __init__(self, openers: Sequence[int]) -> None:
        self._openers = openers
        self.broken: Tensor | bool = False
        self.log_odds: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._openers and not self.log_odds:
            self.log_odds = log_odds(scores, self._openers).tolist()
        self.broken = self.broken | scores.isnan().any(-1)
        return scores
