"""A trial as model input: token ids, positions, encoded image."""

import inspect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from traceback import extract_tb
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cmrm_utils.edits import IMAGE, LAST, PADDING, TEXT
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM
from cmrm_utils.processors import PROBE, UNREADABLE, EncodedImage, out_of_memory
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
    """A prompt in full length, as the family's processor writes it.

    Attributes:
        ids: token ids ``(tokens,)``.
        positions: ``(tokens,)``; ``(3, tokens)`` for a family that places image tokens by time,
            height and width.
        image: the encoded image, or None.
        image_start: the index of the image's first token; 0 without an image.
        kinds: what else the model is given of each token ``(tokens,)``, by name.
        whole: all inputs as the processor makes them, for a prompt that runs alone.
    """

    ids: Tensor
    positions: Tensor
    image: EncodedImage | None
    image_start: int
    kinds: Mapping[str, Tensor] = field(default_factory=dict)
    whole: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def prompts(vlm: VLM, trials: Mapping[str, Trial]) -> list[Prompt]:
    """The prompts of trials by id; equal texts are tokenised once.

    Raises:
        InputError: an image for a model that sees none; a text that holds a token of images.
    """
    known: dict[tuple[str, bool], tuple[int, ...]] = {}
    marks = _image_marks(vlm)
    prompt_list = []
    for trial_id, trial in trials.items():
        if trial.has_image:
            vlm.check_sees_images()
        key = (trial.text, trial.has_image)
        if key not in known:
            text = vlm.prompt_text(trial.text, image=trial.has_image)
            known[key] = ids = tuple(vlm.tokenised(text))
            if any(ids.count(mark) != trial.has_image * n for mark, n in marks.items()):
                raise InputError(f"sample {trial.sample.id}: its text holds the image token")
        ids = known[key]
        mark = vlm.placeholder
        at = (0 if mark is None else ids.index(mark)) if trial.has_image else None
        prompt_list.append(Prompt(trial_id, trial, ids, at, trial.image_key))
    return prompt_list


def _image_marks(vlm: VLM) -> dict[int, int]:
    """The added tokens that a template writes for an image alone, and how often it does."""
    if not vlm.sees_images:
        return {}
    added = vlm.tokenizer.added_tokens_decoder
    without, shown = (vlm.tokenised(vlm.prompt_text(PROBE, image=x)) for x in (False, True))
    marks = {i: shown.count(i) for i in shown if i in added and i not in without}
    return {vlm.model.config.image_token_id: 0, **marks}


def tokens(vlm: VLM, prompt: Prompt, image: EncodedImage | None) -> Tokens:
    """A prompt as the processor writes it; ids and positions are on the CPU.

    Where the processor only expands :attr:`VLM.placeholder`, what it writes for the image is put
    in here; otherwise it reads the prompt itself.
    """
    if vlm.sees_images and (vlm.placeholder is None or (image and image.written is None)):
        return _tokens_as_read(vlm, prompt, image)
    ids, start = list(prompt.ids), prompt.image_at or 0
    if image is not None:
        assert image.written is not None
        ids[start : start + 1] = image.written
        start += image.written.index(vlm.model.config.image_token_id)
    tensor = torch.tensor(ids)
    return Tokens(tensor, _positions(vlm, tensor, image), image, start)


def _tokens_as_read(vlm: VLM, prompt: Prompt, image: EncodedImage | None) -> Tokens:
    """A prompt that the processor reads whole, with its image."""
    inputs = inputs_alone(vlm, prompt.trial)
    row = {k: v[0].cpu() for k, v in inputs.items() if v.shape == inputs["input_ids"].shape}
    ids = row["input_ids"]
    asked = inspect.signature(vlm.core.forward).parameters
    kinds = {
        k: v for k, v in row.items() if k in asked and k not in ("input_ids", "attention_mask")
    }
    seen = (ids == vlm.model.config.image_token_id).nonzero()
    start = int(seen[0]) if len(seen) else 0
    return Tokens(ids, _positions(vlm, ids, image), image, start, kinds)


def tokens_alone(vlm: VLM, prompt: Prompt) -> Tokens:
    """A prompt as plain transformers is given it, with its image not yet encoded."""
    inputs = inputs_alone(vlm, prompt.trial)
    ids = inputs["input_ids"][0].cpu()
    return Tokens(ids, torch.arange(len(ids)), None, 0, whole=inputs)


def inputs_alone(vlm: VLM, trial: Trial) -> dict[str, Tensor]:
    """A trial's prompt as the processor makes it.

    Raises:
        InputError: the processor refuses the image.
    """
    try:
        return vlm.inputs([trial.text], [trial.load_image()])
    except UNREADABLE as error:
        raise InputError(f"sample {trial.sample.id}: its image cannot be read: {error}") from error


@contextmanager
def running_alone(trial: Trial) -> Iterator[None]:
    """Around a prompt that runs alone: an image that the model cannot encode names its sample."""
    try:
        yield
    except RuntimeError as error:
        inside = {frame.name for frame in extract_tb(error.__traceback__)}
        if out_of_memory(error) or "get_image_features" not in inside:  # not the image's fault
            raise
        what = f"sample {trial.sample.id}: its image cannot be encoded"
        raise InputError(f"{what}: {error}") from error


def _positions(vlm: VLM, ids: Tensor, image: EncodedImage | None) -> Tensor:
    if not hasattr(vlm.core, "get_rope_index"):
        return torch.arange(len(ids))
    kinds = (ids == vlm.model.config.image_token_id).int()[None]  # 1 is an image's token
    extras = {k: v.cpu() for k, v in image.extras.items()} if image else {}
    positions, _ = vlm.core.get_rope_index(ids[None], mm_token_type_ids=kinds, **extras)
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
            try:
                self._kept[key] = vlm.encode(picture)
            except InputError as error:
                raise InputError(f"sample {prompt.trial.sample.id}: {error}") from error
            self._size += (size := self._kept[key].nbytes)
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
            self._size -= self._kept.popitem(last=False)[1].nbytes


_encoded: WeakKeyDictionary[VLM, Images] = WeakKeyDictionary()


def images_of(vlm: VLM) -> Images:
    """The encoded images that are kept for a model."""
    if vlm not in _encoded:
        _encoded[vlm] = Images(vlm.picture_state)
    return _encoded[vlm]


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
