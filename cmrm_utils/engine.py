"""Trials in, hidden states or responses out.

Trials of any kind share a batch: each row has its own prompt, image (or none) and edit. Equal
trials run once. What trials share is computed once: an image's features, and the keys and values
of a prompt's beginning, where prompts begin alike under edits that leave the beginning alone or
are the same. Rows leave a batch when their response is complete, and others take their place.
"""

import logging
import os
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from cmrm_utils.conditions import DEFAULT_SIZE
from cmrm_utils.decoding import Batch, Beginnings, Row, can_share, run_prompts
from cmrm_utils.edits import IMAGE, LAST, PADDING, TEXT, Place
from cmrm_utils.errors import InputError
from cmrm_utils.hooks import record, steering
from cmrm_utils.inputs import Prompt, prompts, tokens
from cmrm_utils.models import VLM, EncodedImage
from cmrm_utils.store import Response, Responses
from cmrm_utils.trials import Trial

WORTH_SHARING = 16
"""Tokens that a beginning must have to be computed apart."""

STATES_ROWS = 16
"""Rows a batch at most where no token is decoded: more gain nothing there."""

PACK = 4
"""Batches' worth of trials that are run, and written, as one: a kill costs at most so much."""

SHARED_PACK = 512
"""Trials that are shared out together at most: on every machine as many, whatever its batches."""

LOOK_EVERY = 8
"""Steps between looks at which rows are complete, on a GPU: each look waits for it."""

ENCODED_BYTES = 2**30
"""Memory for encoded images; those not shown for longest are dropped."""

Made = TypeVar("Made")

_log = logging.getLogger(__name__)


class _Images:
    """A model's encoded images, within :data:`ENCODED_BYTES`; those shown last stay.

    Args:
        state: of what encoded them (:attr:`cmrm_utils.models.VLM.picture_state`).
    """

    def __init__(self, state: Any = None) -> None:
        self.state = state
        self.largest = 0  # bytes of the largest image so far, which the next one may have too
        self._kept: OrderedDict[str, EncodedImage] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, vlm: VLM, prompt: Prompt) -> EncodedImage | None:
        """A prompt's image, encoded once while there is room.

        Images are encoded one by one, so that none depends on which others came with it.
        """
        if prompt.image_at is None:
            return None
        key = prompt.image_key
        if key not in self._kept:
            picture = prompt.trial.load_image()
            assert picture is not None
            self._bound(ENCODED_BYTES - self.largest, least=0)
            self._kept[key] = vlm.encode(picture)
            self._size += (size := self._kept[key].features.nbytes)
            self.largest = max(self.largest, size)
            self._bound(ENCODED_BYTES, least=1)
        self._kept.move_to_end(key)
        return self._kept[key]

    def holds_other(self, key: str) -> bool:
        """Whether it has any image but that of a key."""
        return any(each != key for each in self._kept)

    def _bound(self, most: int, *, least: int) -> None:
        while len(self._kept) > least and self._size > most:
            self._size -= self._kept.popitem(last=False)[1].features.nbytes


_encoded: WeakKeyDictionary[VLM, _Images] = WeakKeyDictionary()


def _images(vlm: VLM) -> _Images:
    return _encoded.setdefault(vlm, _Images())


def _renew_images(vlm: VLM, trials: Iterable[Trial]) -> None:
    """Forget images that the vision tower, the projector or the processor would encode anew."""
    if vlm.sees_images and any(trial.has_image for trial in trials):
        state = vlm.picture_state
        if _images(vlm).state != state:
            _encoded[vlm] = _Images(state)


def _unique(trials: Iterable[Trial]) -> tuple[list[str], dict[str, Trial]]:
    """The ids of trials, and one trial for each id, in order of first appearance."""
    ids: list[str] = []
    unique: dict[str, Trial] = {}
    for trial in trials:
        ids.append(trial.id)
        unique.setdefault(ids[-1], trial)
    return ids, unique


def _bar(total: int, title: str, progress: bool) -> Any:
    shown: Any = {} if progress else {"disable": True}  # TQDM_DISABLE=1 silences it too
    return tqdm(total=total, desc=title, unit="trial", leave=False, **shown)


@dataclass(frozen=True, eq=False)
class _Planned:
    """A trial's id and prompt, and how many first ids (an image counting one) others share."""

    id: str
    prompt: Prompt
    shared: int
    beginning: tuple[Any, ...]

    def row(self, vlm: VLM) -> Row:
        made = tokens(vlm, self.prompt, _images(vlm).get(vlm, self.prompt))
        grown = len(made) - len(self.prompt.ids) if self.has_image_in_beginning else 0
        edit = self.prompt.trial.active_edit
        return Row(made, edit, self.shared + grown, self.beginning)

    @property
    def has_image_in_beginning(self) -> bool:
        at = self.prompt.image_at
        return at is not None and at < self.shared


def _planned(vlm: VLM, trials: Mapping[str, Trial]) -> list[_Planned]:
    """The order in which trials run: together what shares a beginning, a length, an image.

    Beginnings are shared where prompts, images and edits of the beginning are the same, and the
    model's cache can be cut.
    """
    made, sharing = prompts(vlm, list(trials.values())), can_share(vlm)
    groups: dict[tuple[str, str], list[tuple[str, Prompt]]] = defaultdict(list)
    for key, prompt in zip(trials, made, strict=True):
        edit = prompt.trial.active_edit
        before = edit.digest if edit is not None and edit.touches_beginnings else "none"
        groups[prompt.image_key, before].append((key, prompt))
    found = []
    for name, group in groups.items():
        shared = _shared([p.ids for _, p in group]) if sharing and len(group) > 1 else 0
        image = group[0][1].image_at
        many = image is not None and image < shared  # an image alone is worth it
        if not many and shared < WORTH_SHARING:
            shared = 0
        found += [_Planned(key, prompt, shared, name) for key, prompt in group]
    places = {name: i for i, name in enumerate(groups)}
    return sorted(
        found,
        key=lambda p: (
            places[p.beginning] if p.shared else -1,
            p.prompt.image_at is not None,
            len(p.prompt.ids),
            p.prompt.image_key,
        ),
    )


def _shared(texts: Sequence[tuple[int, ...]]) -> int:
    """How many first ids all have alike; the last one of the shortest is not counted."""
    low, high = min(texts), max(texts)
    end = min(map(len, texts)) - 1
    return next((i for i in range(end) if low[i] != high[i]), end)


class _Size:
    """How many rows fit into a batch: as many as asked for, as many as memory holds.

    Args:
        vlm: the model.
        rows: as asked for.

    Raises:
        InputError: fewer than one row.
    """

    def __init__(self, vlm: VLM, rows: int | None) -> None:
        if rows is not None and rows < 1:
            raise InputError(f"batch_size must be 1 or more, not {rows}")
        self._vlm = vlm
        self.rows = rows or vlm.batch_size
        self._tokens = _memory(vlm) // _token_bytes(vlm)
        self._longest = 1
        self._last: Prompt | None = None

    @property
    def limit(self) -> int:
        """Rows that a batch may have, each as long as the longest that has entered so far."""
        return max(1, min(self.rows, self._tokens // self._longest))

    def begin(self, *rows: _Planned) -> None:
        """Start a batch; its last row so far is named if it does not fit alone."""
        self._longest, self._last = 1, rows[-1].prompt if rows else None

    def entering(
        self, queue: Iterable[_Planned], most: int, *, inside: int = 0, new: int = 0
    ) -> list[Row]:
        """The next rows of a batch, their images encoded; more only where memory holds them.

        Args:
            queue: what is to come.
            most: rows that may enter.
            inside: rows that the batch has.
            new: tokens that each row is to be given.

        Returns:
            Rows that all share beginnings, or none does; at least one if the batch is empty.
        """
        rows: list[Row] = []
        shown: dict[str, int] = {}
        for planned in _alike(queue, most):
            key, images = planned.prompt.image_key, _images(self._vlm)
            fresh = planned.prompt.image_at is not None and key not in shown
            if rows and fresh and sum(shown.values()) + images.largest > ENCODED_BYTES:
                break
            self._last = planned.prompt
            row = planned.row(self._vlm)
            self._longest = max(self._longest, len(row.tokens) + new)
            if inside + len(rows) >= self.limit:
                break
            if row.tokens.image is not None:
                shown[key] = row.tokens.image.features.nbytes
            rows.append(row)
        return rows

    def attempt(self, job: Callable[[], Made]) -> Made | None:
        """What a job gives; None if memory ran out, with half as many rows from here on.

        Raises:
            torch.OutOfMemoryError: a single row did not fit; it names the sample.
        """
        try:
            return job()
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # which would keep the batch's tensors alive
        self._halve(failure)
        return None

    def _halve(self, error: BaseException) -> None:
        last = self._last
        images = _encoded.pop(self._vlm, _Images())
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.rows > 1:
            self.rows //= 2
            self._vlm.batch_size = min(self._vlm.batch_size, self.rows)
            _log.warning("out of memory: going on with batches of %d", self.rows)
        elif last is None:
            raise error
        elif not images.holds_other(last.image_key):
            trial = last.trial
            raise torch.OutOfMemoryError(
                f"sample {trial.sample.id} (image {trial.image}): no memory even for it alone "
                f"({error})"
            ) from error


def _alike(rows: Iterable[_Planned], limit: int) -> list[_Planned]:
    """The first rows, at most ``limit``: all of them share beginnings, or none does."""
    first = list(islice(rows, limit))
    return next(([*some] for _, some in groupby(first, lambda row: row.shared > 0)), [])


def _memory(vlm: VLM) -> int:
    """Bytes that batches may take; the same in every process on the machine."""
    places = {p.device for p in vlm.model.parameters() if p.device.type == "cuda"}
    if places:
        whole = sum(torch.cuda.get_device_properties(place).total_memory for place in places)
        return int(max(0.8 * (whole - vlm.model.get_memory_footprint()), 0.1 * whole))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _token_bytes(vlm: VLM) -> int:
    """Bytes that a token takes at most: keys and values twice, one layer's passing states."""
    config = vlm.model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * heads * size
    passing = 8 * config.hidden_size + 4 * config.intermediate_size
    return (2 * kept + passing) * vlm.model.dtype.itemsize


def _out_of_memory(error: BaseException) -> bool:
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _in_batches(
    vlm: VLM,
    trials: Mapping[str, Trial],
    batch_size: int | None,
    bar: Any,
    run: Callable[[list[Row], Beginnings], Tensor],
) -> dict[str, Tensor]:
    """What ``run`` gives for each row, by trial id; a batch that does not fit is halved."""
    size, beginnings = _Size(vlm, batch_size), Beginnings()
    most = batch_size or STATES_ROWS
    _renew_images(vlm, trials.values())
    queue = deque(_planned(vlm, trials))
    found: dict[str, Tensor] = {}

    def batch() -> Tensor:
        size.begin()
        return run(size.entering(queue, min(size.rows, most)), beginnings)

    while queue:
        if (values := size.attempt(batch)) is None:
            continue
        for value in values:
            found[queue.popleft().id] = value
        bar.update(len(values))
    return found


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

    Memory grows with trials x layers x hidden alone: no logits, and no states of other tokens.

    Args:
        vlm: the model.
        trials: what to run; equal trials run once.
        place: another of :data:`cmrm_utils.edits.PLACES`: heads' or MLPs' outputs instead.
        batch_size: rows a batch; by default what the model was loaded with.
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

    ids, unique = _unique(trials)
    with _bar(len(unique), "hidden states", progress) as bar:
        found = _in_batches(vlm, unique, batch_size, bar, run)
    shape = (0, len(vlm.layers), vlm.width(place))
    return torch.stack([found[key] for key in ids]) if ids else torch.empty(shape)


@torch.inference_mode()
def first_logits(vlm: VLM, trials: Sequence[Trial], *, batch_size: int | None = None) -> Tensor:
    """Logits of the first response token, float32 ``(trials, vocabulary)`` on the CPU."""

    def run(rows: list[Row], beginnings: Beginnings) -> Tensor:
        with steering(vlm, [row.edit for row in rows]) as steer:
            _, _, logits = run_prompts(vlm, steer, rows, beginnings, head=True)
        assert logits is not None
        return logits.float().cpu()

    ids, unique = _unique(trials)
    found = _in_batches(vlm, unique, batch_size, _bar(len(unique), "logits", False), run)
    return torch.stack([found[key] for key in ids]) if ids else torch.empty(0, vlm.vocabulary)


@torch.inference_mode()
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

    Trials are run in packs, cut from the list as it was when it was first asked for: a run that
    was killed runs the same packs again, so no number depends on where it stopped.

    Args:
        vlm: the model.
        trials: what to run; equal trials run once.
        max_new_tokens: a response is cut there.
        out: a JSON-lines file that responses stream to, and are resumed from.
        batch_size: rows a batch; by default what the model was loaded with.
        progress: show a bar.

    Raises:
        InputError: ``out`` holds responses of another model or token limit; the model's logits
            are not numbers; a token limit or batch size below 1.
        torch.OutOfMemoryError: a trial does not fit into memory alone; it names the sample.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    ids, unique = _unique(trials)
    size = _Size(vlm, batch_size)
    pack = PACK * size.rows
    shared = {"model": vlm.fingerprint, "max_new_tokens": max_new_tokens}
    known = Responses(out, shared) if out else None
    done = {key: response for key in unique if known and (response := known.get(key))}
    if len(done) == len(unique):
        return [done[key].text for key in ids]
    _renew_images(vlm, unique.values())
    with known.appending() if known else nullcontext() as sink:
        todo = unique
        if sink:
            call = sha256(" ".join([str(pack), *unique]).encode())
            before = sink.first(sink.begin(call.hexdigest()[:24]))
            todo = {key: trial for key, trial in unique.items() if key not in before}
        planned = _planned(vlm, todo)
        with _bar(len(todo), "responses", progress) as bar:

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
                _respond(vlm, these, size, max_new_tokens, keep)
    return [done[key].text for key in ids]


def shared_out(vlm: VLM, trials: Sequence[Trial], number: int, count: int) -> list[Trial]:
    """The trials of one of ``count`` workers, numbered from 1: every ``count``-th pack.

    What trials share stays together, and long prompts fall to all alike. The shares follow from
    the list and the model alone, so that machines with other batches or memory agree on them.
    """
    planned = _planned(vlm, _unique(trials)[1])
    pack = max(1, min(SHARED_PACK, len(planned) // (4 * count)))
    packs = [planned[start : start + pack] for start in range(0, len(planned), pack)]
    return [each.prompt.trial for own in packs[number - 1 :: count] for each in own]


def prompt_tokens(vlm: VLM, trials: Sequence[Trial]) -> tuple[int, int]:
    """How many prompt tokens trials have, and how many of them are computed.

    An image is counted as many tokens as a plain one has; a shared beginning once.
    """
    grey = Image.new("RGB", DEFAULT_SIZE, (127, 127, 127))
    image = len(vlm.encode(grey).features) if vlm.sees_images else 0
    whole, computed, seen = 0, 0, set()
    for planned in _planned(vlm, _unique(trials)[1]):
        ids, at = planned.prompt.ids, planned.prompt.image_at
        length = len(ids) + (image - 1 if at is not None else 0)
        shared = planned.shared + (image - 1 if planned.has_image_in_beginning else 0)
        whole += length
        computed += length - (shared if planned.beginning in seen else 0)
        if shared:
            seen.add(planned.beginning)
    return whole, computed


def _respond(
    vlm: VLM,
    pack: Sequence[_Planned],
    size: _Size,
    max_new_tokens: int,
    keep: Callable[[str, Response], None],
) -> None:
    """Respond to a pack of trials; what does not fit into memory is tried in smaller batches."""
    left = list(pack)
    run = _decode if can_share(vlm) else _generate
    over: set[str] = set()

    def complete(key: str, response: Response) -> None:
        over.add(key)
        keep(key, response)

    while left:
        size.attempt(partial(run, vlm, left, size, max_new_tokens, complete))
        left = [each for each in left if each.id not in over]


def _decode(
    vlm: VLM,
    pack: Sequence[_Planned],
    size: _Size,
    max_new_tokens: int,
    complete: Callable[[str, Response], None],
) -> None:
    """Respond in one batch that rows leave when they are complete, and others join."""
    trials = [each.prompt.trial for each in pack]
    queue = deque(pack)
    size.begin()
    beginnings, ends = Beginnings(), vlm.ends
    look_every = 1 if vlm.device.type == "cpu" else LOOK_EVERY
    written: dict[int, list[int]] = {}
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
                    for _ in new.names:
                        queue.popleft()
                    del rows  # and with them their images, which are in the cache by now
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
                        complete(pack[name].id, response)
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
    """The response, if these token ids are one."""
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


class _Broken(LogitsProcessor):
    """Leaves logits as they are; ``rows`` says which rows had one that is not a number."""

    rows: Tensor | bool = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.rows = self.rows | scores.isnan().any(-1)
        return scores


def _generate(
    vlm: VLM,
    pack: Sequence[_Planned],
    size: _Size,
    max_new_tokens: int,
    complete: Callable[[str, Response], None],
) -> None:
    """Respond in transformers' own batches, for models whose cache cannot be cut and joined."""
    for start in range(0, len(pack), size.rows):
        these = pack[start : start + size.rows]
        batch = [each.prompt.trial for each in these]
        size.begin(*these)
        inputs = _inputs(vlm, batch)
        edits = [trial.active_edit for trial in batch]
        watch = _Broken()
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
        broken = torch.as_tensor(watch.rows).tolist()
        for each, row, bad in zip(these, written, broken, strict=True):
            if bad:
                raise _no_numbers(each.prompt.trial)
            response = _completed(vlm, row, vlm.ends, len(row))
            assert response is not None
            complete(each.id, response)


def _inputs(vlm: VLM, batch: Sequence[Trial]) -> dict[str, Tensor]:
    return vlm.inputs([trial.text for trial in batch], [trial.load_image() for trial in batch])


def token_kinds(vlm: VLM, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the tokens of whole left-padded prompts are, as edits ask: int8 ``(rows, tokens)``."""
    ids, real = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool()
    kinds = torch.where(real, TEXT, PADDING).to(torch.int8)
    if vlm.sees_images:
        kinds[real & (ids == vlm.model.config.image_token_id)] = IMAGE
    kinds[:, -1] = LAST
    return kinds
