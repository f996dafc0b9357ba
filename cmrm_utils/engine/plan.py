"""The order in which trials run, and the prefixes that they share."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from weakref import WeakSet

from cmrm_utils.engine.batch import Row
from cmrm_utils.engine.cache import can_share
from cmrm_utils.engine.inputs import Prompt, images_of, prompts, tokens, tokens_alone
from cmrm_utils.models import VLM
from cmrm_utils.trials import Trial

WORTH_SHARING = 16
"""Shortest shared prefix worth a separate prefill, in tokens."""


_log = logging.getLogger(__name__)

_warned: WeakSet[VLM] = WeakSet()
"""Models of which a prompt that is too long has been warned of."""


def distinct(trials: Sequence[Trial]) -> tuple[list[str], dict[str, Trial]]:
    """The ids of trials, and one trial for each id. Ids come in order of first appearance."""
    ids = [trial.id for trial in trials]
    return ids, dict(zip(ids, trials, strict=True))


def row_of(vlm: VLM, prompt: Prompt) -> Row:
    """A prompt as the row of a batch, with its image encoded.

    The first prompt that is longer than the model has positions for is warned of.
    """
    if vlm.way == "plain":
        row = Row(prompt, tokens_alone(vlm, prompt))
    else:
        row = Row(prompt, tokens(vlm, prompt, images_of(vlm).get(vlm, prompt)))
    most = getattr(vlm.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if most and len(row.tokens) > most and vlm not in _warned:
        _warned.add(vlm)
        _log.warning(
            "sample %s: its prompt has %d tokens, and %s was made for %d: states and responses "
            "may be meaningless",
            *(prompt.trial.sample.id, len(row.tokens), vlm.name, most),
        )
    return row


def in_order(vlm: VLM, trials: Mapping[str, Trial], *, share: bool = True) -> list[Prompt]:
    """The prompts of trials in the order in which they run: by shared beginning, length and image.

    A beginning is shared if prompts, images and the beginning's edits are equal, and if the
    model's cache can be cut; with ``share`` False none is.
    """
    groups: dict[tuple[str, str], list[Prompt]] = defaultdict(list)
    for prompt in prompts(vlm, trials):
        edit = prompt.trial.active_edit
        before = edit.digest if edit is not None and edit.touches_beginnings else "none"
        groups[prompt.image_key, before].append(prompt)
    sharing, queue = share and can_share(vlm), []
    for name, group in groups.items():
        shared = _shared([prompt.ids for prompt in group]) if sharing and len(group) > 1 else 0
        members = [replace(prompt, shared=shared, beginning=name) for prompt in group]
        if not members[0].shares_image and shared < WORTH_SHARING:  # an image is always worth it
            members = [replace(prompt, shared=0) for prompt in members]
        queue += members
    places = {name: i for i, name in enumerate(groups)}
    return sorted(
        queue,
        key=lambda p: (
            places[p.beginning] if p.shared else -1,
            p.image_at is not None,
            len(p.ids),
            p.image_key,
        ),
    )


def _shared(texts: Sequence[tuple[int, ...]]) -> int:
    """Length of the common prefix, which always leaves the shortest text one id."""
    low, high = min(texts), max(texts)
    end = min(map(len, texts)) - 1
    return next((i for i in range(end) if low[i] != high[i]), end)


def alike(rows: Iterable[Prompt], limit: int) -> list[Prompt]:
    """The first rows, at most ``limit``: all of them share beginnings, or none does."""
    first = list(islice(rows, limit))
    return next(([*some] for _, some in groupby(first, lambda row: row.shared > 0)), [])
