"""What a model is given of a trial: token ids, their positions, and its image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmrm_utils.edits import IMAGE, LAST, TEXT
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM, EncodedImage
from cmrm_utils.trials import Trial


@dataclass(frozen=True, eq=False)
class Prompt:
    """A trial's prompt, tokenised.

    Attributes:
        trial: whose it is.
        ids: token ids, an image being one token.
        image_at: where in ``ids`` the image is; None without one.
        image_key: of the trial's image, as it is now (:attr:`cmrm_utils.trials.Trial.image_key`).
    """

    trial: Trial
    ids: tuple[int, ...]
    image_at: int | None
    image_key: str


@dataclass(frozen=True, eq=False)
class Tokens:
    """A prompt with as many image tokens as its image takes.

    Attributes:
        ids: token ids ``(tokens,)``.
        positions: ``(tokens,)``; ``(3, tokens)`` for a family that places image tokens by time,
            height and width.
        image: the encoded image, or None.
        image_start: the image's first token, 0 without one.
    """

    ids: Tensor
    positions: Tensor
    image: EncodedImage | None
    image_start: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kinds(self) -> Tensor:
        """What each token is, as edits ask: int8 ``(tokens,)`` of text, image, the last one."""
        made = torch.full((len(self),), TEXT, dtype=torch.int8)
        if self.image is not None:
            made[self.image_start : self.image_start + len(self.image.features)] = IMAGE
        made[-1] = LAST
        return made


def prompts(vlm: VLM, trials: Sequence[Trial]) -> list[Prompt]:
    """The prompts of trials; equal texts are tokenised once.

    Raises:
        InputError: an image for a model that sees none, or a text with the model's image token.
    """
    known: dict[tuple[str, bool], tuple[int, ...]] = {}
    image_id = vlm.model.config.image_token_id if vlm.sees_images else None
    made = []
    for trial in trials:
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
        made.append(Prompt(trial, ids, at, trial.image_key))
    return made


def tokens(vlm: VLM, prompt: Prompt, image: EncodedImage | None) -> Tokens:
    """A prompt with its image's tokens in place, ids and positions on the CPU."""
    ids = list(prompt.ids)
    at = prompt.image_at
    if at is None or image is None:
        image, start = None, 0
    else:
        ids[at : at + 1] = [ids[at]] * len(image.features)
        start = at
    made = torch.tensor(ids)
    return Tokens(made, _positions(vlm, made, image), image, start)


def _positions(vlm: VLM, ids: Tensor, image: EncodedImage | None) -> Tensor:
    if not hasattr(vlm.model.model, "get_rope_index"):
        return torch.arange(len(ids))
    kinds = (ids == vlm.model.config.image_token_id).int()[None]  # 1 is an image's token
    extras = {k: v.cpu() for k, v in image.extras.items()} if image else {}
    found, _ = vlm.model.model.get_rope_index(ids[None], mm_token_type_ids=kinds, **extras)
    return found[:, 0]
