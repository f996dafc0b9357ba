"""A trial as model input: token ids, positions, encoded image."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cmrm_utils.edits import IMAGE, LAST, PADDING, TEXT
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM, EncodedImage
from cmrm_utils.trials import Trial


@dataclass(frozen=True, eq=False)
class Prompt:
    """A trial's prompt, tokenised.

    Attributes:
        id: the trial's id, as of now.
        trial: the trial.
        ids: token ids, an image being one token.
        image_at: the index of the image in ``ids``; None without one.
        image_key: the trial's image key (:attr:`cmrm_utils.trials.Trial.image_key`), as of now.
        shared: the number of first ``ids`` that other prompts share; 0 for none.
        beginning: the name of the shared beginning: equal for equal tokens, image and edit.
    """

    id: str
    trial: Trial
    ids: tuple[int, ...]
    image_at: int | None
    image_key: str
    shared: int = 0
    beginning: tuple[Any, ...] = ()

    @property
    def shares_image(self) -> bool:
        """Whether the shared beginning includes the image."""
        return self.image_at is not None and self.image_at < self.shared


@dataclass(frozen=True, eq=False)
class Tokens:
    """A prompt in full length: the image's token repeated as often as the image needs.

    Attributes:
        ids: token ids ``(tokens,)``.
        positions: ``(tokens,)``; ``(3, tokens)`` for a family that places image tokens by time,
            height and width.
        image: the encoded image, or None.
        image_start: the index of the image's first token; 0 without an image.
    """

    ids: Tensor
    positions: Tensor
    image: EncodedImage | None
    image_start: int

    def __len__(self) -> int:
        return len(self.ids)


def prompts(vlm: VLM, trials: Mapping[str, Trial]) -> list[Prompt]:
    """The prompts of trials by id; equal texts are tokenised once.

    Raises:
        InputError: an image for a model that sees none; a text that holds the image token.
    """
    known: dict[tuple[str, bool], tuple[int, ...]] = {}
    image_id = vlm.model.config.image_token_id if vlm.sees_images else None
    prompt_list = []
    for trial_id, trial in trials.items():
        if trial.has_image:
            vlm.check_sees_images()
        key = (trial.text, trial.has_image)
        if key not in known:
            text = vlm.prompt_text(trial.text, image=trial.has_image)
            known[key] = tuple(vlm.tokenised(text))
            if known[key].count(image_id) != trial.has_image:
                raise InputError(f"sample {trial.sample.id}: its text holds the image token")
        ids = known[key]
        at = ids.index(image_id) if trial.has_image else None
        prompt_list.append(Prompt(trial_id, trial, ids, at, trial.image_key))
    return prompt_list


def tokens(vlm: VLM, prompt: Prompt, image: EncodedImage | None) -> Tokens:
    """A prompt with its image's tokens in place; ids and positions are on the CPU."""
    ids, start = list(prompt.ids), prompt.image_at or 0
    if image is not None:
        ids[start : start + 1] = [ids[start]] * len(image.features)
    tensor = torch.tensor(ids)
    return Tokens(tensor, _positions(vlm, tensor, image), image, start)


def _positions(vlm: VLM, ids: Tensor, image: EncodedImage | None) -> Tensor:
    if not hasattr(vlm.model.model, "get_rope_index"):
        return torch.arange(len(ids))
    kinds = (ids == vlm.model.config.image_token_id).int()[None]  # 1 is an image's token
    extras = {k: v.cpu() for k, v in image.extras.items()} if image else {}
    positions, _ = vlm.model.model.get_rope_index(ids[None], mm_token_type_ids=kinds, **extras)
    return positions[:, 0]


ENCODED_BYTES = 2**30
"""Memory for encoded images, in bytes; the least recently used are dropped."""


class Images:
    """A model's encoded images, within :data:`ENCODED_BYTES`: a least-recently-used cache.

    Args:
        state: the encoder's (:attr:`cmrm_utils.models.VLM.picture_state`).
    """

    def __init__(self, state: Any = None) -> None:
        self.state = state
        self.largest = 0  # bytes of the largest image so far; the next one may be as large
        self._kept: OrderedDict[str, EncodedImage] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, vlm: VLM, prompt: Prompt) -> EncodedImage | None:
        """A prompt's encoded image; encoded anew only if it was dropped.

        Images are encoded one at a time, so that no image depends on its neighbours in a batch.
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

    def has_room(self, size: int) -> bool:
        """Whether one more image fits beside others of ``size`` bytes."""
        return size + self.largest <= ENCODED_BYTES

    def holds_other(self, key: str) -> bool:
        """Whether any image but that of ``key`` is kept."""
        return any(each != key for each in self._kept)

    def _bound(self, most: int, *, least: int) -> None:
        while len(self._kept) > least and self._size > most:
            self._size -= self._kept.popitem(last=False)[1].features.nbytes


_encoded: WeakKeyDictionary[VLM, Images] = WeakKeyDictionary()


def images_of(vlm: VLM) -> Images:
    """The encoded images that are kept for a model."""
    return _encoded.setdefault(vlm, Images())


def forget_images(vlm: VLM) -> Images:
    """Drop a model's encoded images, and return them."""
    return _encoded.pop(vlm, Images())


def renew_images(vlm: VLM, trials: Iterable[Trial]) -> None:
    """Drop encoded images if the vision tower, projector or processor has changed since."""
    if vlm.sees_images and any(trial.has_image for trial in trials):
        state = vlm.picture_state
        if images_of(vlm).state != state:
            _encoded[vlm] = Images(state)


def token_kinds(vlm: VLM, inputs: Mapping[str, Tensor], *, whole: bool = True) -> Tensor:
    """The kinds for edits of left-padded prompts' tokens: int8 ``(rows, tokens)``, on the CPU.

    Of whole prompts, the last tokens are LAST.
    """
    ids, real = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool()
    kinds = torch.where(real, TEXT, PADDING).to(torch.int8)
    if vlm.sees_images:
        kinds[real & (ids == vlm.model.config.image_token_id)] = IMAGE
    if whole:
        kinds[:, -1] = LAST
    return kinds
