"""Requests without images, paired with scenes."""

import re
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from cmrm_utils.errors import InputError
from cmrm_utils.sample import SPLITS, Sample, split_of


def pair(
    requests: Sequence[Sample], scenes: Sequence[Sample], split: str | None = None
) -> list[Sample]:
    """Text requests with the images and captions of other samples: everyday scenes.

    The paper pairs the forbidden questions with "related" COCO images but does not publish the
    pairs, so this pairing is ours. Requests choose in the order of their ids. Each takes, of the
    images that are left, the one whose caption shares the most words of four letters or more with
    it; a hash breaks ties. An image and its request are always of one split, so that no image of
    VLSafe's test split, say, comes with an anchor of another set.

    Args:
        requests: samples without images.
        scenes: samples with images and captions, each image once.
        split: the split of all requests, whatever their ids say; None: the split of each id.

    Raises:
        InputError: a request's split has no scene.
    """
    paired: dict[str, Sample] = {}
    left: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for request in sorted(requests, key=lambda sample: sample.id):
        place = split or split_of(request.id)
        free = left[place]
        if not free:  # at the start, and when there are more requests than images
            free += [scene for scene in scenes if split_of(scene.id) == place]
        if not free:
            raise InputError(f"no image in the {place} split to pair {request.id}")
        words = _words(request.query)
        best = min(free, key=lambda scene: _rank(request.id, words, scene))
        free.remove(best)
        paired[request.id] = replace(request, image=best.image, caption=best.caption)
    return [paired[request.id] for request in requests]


def _words(text: str | None) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", (text or "").lower()))


def _rank(request_id: str, words: set[str], scene: Sample) -> tuple[int, str]:
    """How far a scene is from a request's words; the request takes the least."""
    tie = sha256(f"{request_id}/{scene.id}".encode()).hexdigest()
    return -len(words & _words(scene.caption)), tie
