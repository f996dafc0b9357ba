"""Trials in, hidden states or responses out.

Trials of any kind share a batch: each row has its own prompt, image (or none) and edit. Equal
trials run once. What trials share is computed once: an image's features, and the keys and values
of a common prefix, if the edits are equal or leave the prefix alone. A row leaves its batch when
its response is complete, and another takes its place.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from cmrm_utils.edits import Place
from cmrm_utils.engine.batch import Batch, Beginnings, Row, log_odds, run_prompts
from cmrm_utils.engine.cache import can_share
from cmrm_utils.engine.cores import CORES
from cmrm_utils.engine.inputs import renew_images, token_kinds
from cmrm_utils.engine.memory import Size
from cmrm_utils.engine.plan import Planned, distinct, in_order
from cmrm_utils.errors import InputError
from cmrm_utils.hooks import record, steering
from cmrm_utils.models import VLM
from cmrm_utils.store import Records, Response, Responses
from cmrm_utils.trials import Trial

STATES_ROWS = 16
"""Rows in a batch that decodes no token; more are not faster.

It does not depend on the model's ``batch_size``: the last digits of states depend on the rows of
their batch, so machines with other batch sizes could not agree on vectors, nor on trial ids.
"""


PACK = 4
"""Pack size in batches. A killed run repeats at most one pack."""


LOOK_EVERY = 8
"""On a GPU, check for finished rows only every N steps: each check synchronises."""


def progress_bar(total: int, title: str, progress: bool, *, unit: str = "trial") -> Any:
    """A bar that counts up to a total and vanishes at the end; nothing unless ``progress``."""
    shown: Any = {} if progress else {"disable": True}  # TQDM_DISABLE=1 silences it too
    return tqdm(total=total, desc=title, unit=unit, leave=False, **shown)


def _in_batches(
    vlm: VLM,
    trials: Sequence[Trial],
    batch_size: int | None,
    run: Callable[[list[Row], Beginnings], Tensor],
    *,
    title: str,
    progress: bool = False,
) -> list[Tensor]:
    """Each trial's result from ``run``, which takes a batch; one that does not fit is halved."""
    CORES.take_all()
    ids, unique = distinct(trials)
    size = Size(vlm, STATES_ROWS if batch_size is None else batch_size)
    beginnings = Beginnings()
    renew_images(vlm, unique.values())
    queue = deque(in_order(vlm, unique))
    results: dict[str, Tensor] = {}

    def batch() -> Tensor:
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


@torch.inference_mode()
def hidden_states(
    vlm: VLM,
    trials: Sequence[Trial],
    *,
    place: Place = "layer",
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """The residual stream at each decoder layer's output, at the last prompt token.

    Memory grows with trials x layers x hidden only: no logits, and no states of other tokens.

    Args:
        vlm: the model.
        trials: what to run; equal trials run once.
        place: where in a layer (:data:`cmrm_utils.edits.PLACES`), as for heads' outputs instead.
        batch_size: rows in a batch; by default :data:`STATES_ROWS`.
        progress: show a bar.

    Returns:
        float32 ``(trials, layers, hidden)`` on the CPU, under each trial's edit.

    Raises:
        InputError: the model does not have the place.
    """

    def run(rows: list[Row], beginnings: Beginnings) -> Tensor:
        with steering(vlm, [row.edit for row in rows]) as steer, record(vlm, place) as states:
            run_prompts(vlm, steer, rows, beginnings, head=False)
        return torch.stack([state.cpu() for state in states], dim=1)

    states = _in_batches(vlm, trials, batch_size, run, title="hidden states", progress=progress)
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


@torch.inference_mode()
def generate(
    vlm: VLM,
    trials: Sequence[Trial],
    *,
    max_new_tokens: int,
    out: Path | None = None,
    openers: Sequence[int] = (),
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
        openers: ids of tokens that open a refusal; each kept response then has its ``log_odds``.
        batch_size: rows in a batch; by default the model's.
        progress: show a bar.

    Raises:
        InputError: ``out`` holds responses of another model or token limit; the model's logits
            are not numbers; a token limit or batch size below 1.
        torch.OutOfMemoryError: a trial does not fit into memory alone; it names the sample.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    ids, unique = distinct(trials)
    size = Size(vlm, batch_size)
    pack = PACK * size.rows
    shared: dict[str, Any] = {"model": vlm.fingerprint, "max_new_tokens": max_new_tokens}
    if openers:
        shared["openers"] = sorted(openers)
    known = Responses(out, shared) if out else None
    done = {key: response for key in unique if known and (response := known.get(key))}
    if len(done) == len(unique):
        return [done[key].text for key in ids]
    renew_images(vlm, unique.values())
    with known.appending() if known else nullcontext() as sink:
        planned = in_order(vlm, _at_first(sink, unique, pack) if sink else unique)
        with progress_bar(len(planned), "responses", progress) as bar:

            def keep(key: str, response: Response) -> None:
                bar.update()
                if key not in done:
                    done[key] = response
                    if sink:
                        sink.add([(key, response)])

            for start in range(0, len(planned), pack):
                these = planned[start : start + pack]
                if all(each.id in done for each in these):
                    bar.update(len(these))
                    continue
                _respond(vlm, these, size, max_new_tokens, openers, keep)
    return [done[key].text for key in ids]


def _at_first(sink: Records[Response], trials: Mapping[str, Trial], pack: int) -> dict[str, Trial]:
    """The trials that had no response when this list was first asked for, in this pack size."""
    call = sha256(" ".join([str(pack), *trials]).encode())
    before = sink.first(sink.begin(call.hexdigest()[:24]))
    return {key: trial for key, trial in trials.items() if key not in before}


def _respond(
    vlm: VLM,
    pack: Sequence[Planned],
    size: Size,
    max_new_tokens: int,
    openers: Sequence[int],
    keep: Callable[[str, Response], None],
) -> None:
    """Respond to a pack of trials, in smaller batches if memory runs out."""
    left = list(pack)
    run = _decode if can_share(vlm) else _generate
    over: set[str] = set()

    def complete(key: str, response: Response) -> None:
        over.add(key)
        keep(key, response)

    while left:
        size.attempt(partial(run, vlm, left, size, max_new_tokens, openers, complete))
        left = [each for each in left if each.id not in over]


def _decode(
    vlm: VLM,
    pack: Sequence[Planned],
    size: Size,
    max_new_tokens: int,
    openers: Sequence[int],
    complete: Callable[[str, Response], None],
) -> None:
    """Respond in one batch: a row leaves once its response is complete, and another one joins."""
    trials = [each.prompt.trial for each in pack]
    queue = deque(pack)
    size.begin()
    beginnings, ends = Beginnings(), vlm.ends
    look_every = 1 if vlm.device.type == "cpu" else LOOK_EVERY
    written: dict[int, list[int]] = {}
    odds: dict[int, float] = {}
    steps: list[Tensor] = []
    batch: Batch | None = None
    with steering(vlm, [trial.active_edit for trial in trials]) as steer:
        while queue or batch:
            inside = len(batch) if batch else 0
            room = size.limit - inside
            if queue and not steps and room >= max(1, size.limit // 4):
                names = range(len(pack) - len(queue), len(pack))
                rows = size.entering(queue, room, inside=inside, new=max_new_tokens)
                if rows:
                    new = Batch(vlm, steer, rows, names[: len(rows)], beginnings, max_new_tokens)
                    written |= {name: [] for name in new.names}
                    if openers:
                        odds |= zip(new.names, new.log_odds(openers), strict=True)
                    for _ in new.names:
                        queue.popleft()
                    del rows  # frees their images, whose tokens are in the cache by now
                    if batch:
                        batch.join(new)
                    else:
                        batch = new
            assert batch is not None
            token = batch.choose()
            steps.append(token)
            if len(steps) == look_every:
                open_rows = [i for i, name in enumerate(batch.names) if name in written]
                _check(batch, trials, open_rows)
                columns = torch.stack(steps, dim=1).tolist()
                steps.clear()
                for i in open_rows:
                    name = batch.names[i]
                    written[name] += columns[i]
                    if response := _completed(vlm, written[name], ends, max_new_tokens):
                        complete(pack[name].id, replace(response, log_odds=odds.get(name)))
                        del written[name]
                stay = [i for i in open_rows if batch.names[i] in written]
                if not stay:
                    batch = None
                    continue
                if len(batch) - len(stay) >= max(1, len(batch) // 8):
                    token = token[batch.keep(stay)]
            batch.feed(token)


def _completed(
    vlm: VLM, ids: Sequence[int], ends: set[int], max_new_tokens: int
) -> Response | None:
    """The response that these token ids make; None while it is incomplete."""
    ids = ids[:max_new_tokens]
    stop = next((i for i, token in enumerate(ids) if token in ends), None)
    if stop is None and len(ids) < max_new_tokens:
        return None
    kept = tuple(ids if stop is None else ids[: stop + 1])
    return Response(vlm.decode(kept), kept, stop is not None)


def _check(batch: Batch, trials: Sequence[Trial], rows: Sequence[int]) -> None:
    broken = batch.broken.tolist()
    for name in (batch.names[i] for i in rows if broken[i]):
        raise _no_numbers(trials[name])


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


def _generate(
    vlm: VLM,
    pack: Sequence[Planned],
    size: Size,
    max_new_tokens: int,
    openers: Sequence[int],
    complete: Callable[[str, Response], None],
) -> None:
    """Respond in batches of transformers' ``generate``, for caches that cannot be cut."""
    for start in range(0, len(pack), size.rows):
        these = pack[start : start + size.rows]
        batch = [each.prompt.trial for each in these]
        size.begin(*these)
        inputs = _inputs(vlm, batch)
        edits = [trial.active_edit for trial in batch]
        watch = _Watch(openers)
        with steering(vlm, edits) as steer:
            steer.rows(edits, token_kinds(vlm, inputs))
            whole = vlm.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                logits_processor=LogitsProcessorList([watch]),
            )
        written = whole[:, inputs["input_ids"].shape[1] :].tolist()
        broken = torch.as_tensor(watch.broken).tolist()
        odds: list[Any] = watch.log_odds or [None] * len(these)
        for each, row, bad, of_row in zip(these, written, broken, odds, strict=True):
            if bad:
                raise _no_numbers(each.prompt.trial)
            response = _completed(vlm, row, vlm.ends, len(row))
            assert response is not None
            complete(each.id, replace(response, log_odds=of_row))


def _inputs(vlm: VLM, batch: Sequence[Trial]) -> dict[str, Tensor]:
    return vlm.inputs([trial.text for trial in batch], [trial.load_image() for trial in batch])
