"""Trials, and lists of them. A trial is one forward pass or one generation of an experiment.

It has a sample, an image condition and an edit. Its id is a hash of the model's input and the
edit, so trials can be reused between experiments, resumed, and divided among machines.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from PIL import Image

from cmrm_utils.conditions import IMAGES, IN_WORDS, OF_OWN, image_key
from cmrm_utils.edits import Edit
from cmrm_utils.errors import InputError, unknown
from cmrm_utils.prompts import caption_prompt
from cmrm_utils.sample import Sample
from cmrm_utils.store import hashed


@dataclass(frozen=True, eq=False)
class Trial:
    """One sample, shown in one image condition, under one edit.

    Attributes:
        sample: what is asked.
        image: a key of :data:`IMAGES`.
        edit: None, or an edit; a sample-level edit becomes its row for the sample.
        prompt: replaces the sample's text, for trials about the wording.

    Raises:
        InputError: an unknown image condition, or an edit without a row for the sample.
    """

    sample: Sample
    image: str = "own"
    edit: Edit | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.image not in IMAGES:
            raise unknown("no image condition", self.image, IMAGES)
        if self.edit is not None:
            object.__setattr__(self, "edit", self.edit.row(self.sample.id))

    @property
    def text(self) -> str:
        """The query in the model's prompt, before the chat template."""
        if self.prompt is not None:
            return self.prompt
        if self.image == "caption":
            if self.sample.caption is None:
                raise InputError(f"sample {self.sample.id} has no caption")
            return caption_prompt(self.sample.caption, self.sample.prompt)
        return self.sample.prompt

    @property
    def active_edit(self) -> Edit | None:
        """The edit, or None where it changes nothing."""
        return None if self.edit is None or self.edit.empty else self.edit

    @property
    def has_image(self) -> bool:
        """Whether an image goes with the prompt."""
        return self.image not in IN_WORDS

    def load_image(self) -> Image.Image | None:
        """The image that goes with the prompt, decoded; None for text only."""
        return IMAGES[self.image](self.sample)

    @property
    def id(self) -> str:
        """A stable hash of prompt, decoded pixels and edit: 24 hex digits.

        Names do not count: alpha 0 has the id of no edit, and an own image that is grey has the
        id of ``blank``. An image file is hashed as it is now.
        """
        parts = (self.text, self.image_key, self.edit.digest if self.edit else "none")
        return hashed(parts, 24)

    @property
    def image_key(self) -> str:
        """A hash of the image's decoded pixels; ``none`` for text only."""
        return image_key(self.sample, self.image)


def grid(
    samples: Iterable[Sample],
    *,
    images: Sequence[str] = ("own",),
    edits: Sequence[Edit | None] = (None,),
) -> list[Trial]:
    """Every sample in every image condition under every edit.

    A condition leaves out samples without the image or caption that it needs.
    """
    return [
        Trial(sample, image, edit)
        for image, edit, sample in product(images, edits, samples)
        if not (image in OF_OWN and sample.image is None)
        and not (image == "caption" and sample.caption is None)
    ]
