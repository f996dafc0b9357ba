"""The order in which trials run, and the prefixes that they share."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from PIL import Image

from cmrm_utils.conditions import DEFAULT_SIZE
from cmrm_utils.engine.batch import Row
from cmrm_utils.engine.cache import can_share
from cmrm_utils.engine.inputs import Prompt, images_of, prompts, tokens
from cmrm_utils.models import VLM
from cmrm_utils.trials import Trial

WORTH_SHARING = 16
"""Shortest shared prefix worth a separate prefill, in tokens."""


SHARED_PACK = 512
"""Largest pack, in trials, that goes to one worker: the same on machines of any batch size."""


def distinct(trials: Iterable[Trial]) -> tuple[list[str], dict[str, Trial]]:
    """The ids of trials, and one trial for each id, in order of first appearance."""
    ids: list[str] = []
    unique: dict[str, Trial] = {}
    for trial in trials:
        ids.append(trial.id)
        unique.setdefault(ids[-1], trial)
    return ids, unique


@dataclass(frozen=True, eq=False)
class Planned:
    """A trial's id and prompt, and the length of its shared prefix (an image counts as one id)."""

    id: str
    prompt: Prompt
    shared: int
    beginning: tuple[Any, ...]

    def row(self, vlm: VLM) -> Row:
        """The row of a batch, with its image encoded."""
        made = tokens(vlm, self.prompt, images_of(vlm).get(vlm, self.prompt))
        grown = len(made) - len(self.prompt.ids) if self.has_image_in_beginning else 0
        edit = self.prompt.trial.active_edit
        return Row(made, edit, self.shared + grown, self.beginning)

    @property
    def has_image_in_beginning(self) -> bool:
        """Whether the shared beginning includes the image."""
        at = self.prompt.image_at
        return at is not None and at < self.shared


def in_order(vlm: VLM, trials: Mapping[str, Trial]) -> list[Planned]:
    """The trials in the order in which they run: by shared beginning, by length, by image.

    A beginning is shared if prompts, images and the beginning's edits are equal, and if the
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
        many = image is not None and image < shared  # an image is always worth sharing
        if not many and shared < WORTH_SHARING:
            shared = 0
        found += [Planned(key, prompt, shared, name) for key, prompt in group]
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
    """Length of the common prefix, which always leaves the shortest text one id."""
    low, high = min(texts), max(texts)
    end = min(map(len, texts)) - 1
    return next((i for i in range(end) if low[i] != high[i]), end)


def alike(rows: Iterable[Planned], limit: int) -> list[Planned]:
    """The first rows, at most ``limit``: all of them share beginnings, or none does."""
    first = list(islice(rows, limit))
    return next(([*some] for _, some in groupby(first, lambda row: row.shared > 0)), [])


def shared_out(vlm: VLM, trials: Sequence[Trial], number: int, count: int) -> list[Trial]:
    """The trials of worker ``number`` (from 1) of ``count``: every ``count``-th pack.

    Trials with a shared beginning stay together, and every worker gets its part of long prompts.
    The division follows from the list and the model only, so that machines with other batch sizes
    or memory agree on it.
    """
    planned = in_order(vlm, distinct(trials)[1])
    pack = max(1, min(SHARED_PACK, len(planned) // (4 * count)))
    packs = [planned[start : start + pack] for start in range(0, len(planned), pack)]
    return [each.prompt.trial for own in packs[number - 1 :: count] for each in own]


def prompt_tokens(vlm: VLM, trials: Sequence[Trial]) -> tuple[int, int]:
    """The number of prompt tokens of trials, and how many of them are computed.

    Every image counts as many tokens as a grey one; a shared beginning is computed once.
    """
    grey = Image.new("RGB", DEFAULT_SIZE, (127, 127, 127))
    image = len(vlm.encode(grey).features) if vlm.sees_images else 0
    whole, computed, seen = 0, 0, set()
    for planned in in_order(vlm, distinct(trials)[1]):
        ids, at = planned.prompt.ids, planned.prompt.image_at
        length = len(ids) + (image - 1 if at is not None else 0)
        shared = planned.shared + (image - 1 if planned.has_image_in_beginning else 0)
        whole += length
        computed += length - (shared if planned.beginning in seen else 0)
        if shared:
            seen.add(planned.beginning)
    return whole, computed
