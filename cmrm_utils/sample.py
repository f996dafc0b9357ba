"""A sample: a query, perhaps an image, and what a good answer is."""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from cmrm_utils.errors import InputError
from cmrm_utils.prompts import choice_prompt

SPLITS = ("anchors", "validation", "test")

SHARES = {"anchors": 0.2, "validation": 0.16, "test": 0.64}
"""How samples fall into splits, by a hash of their id: 20% anchors, as in the paper."""


_TASKS = {"fact": "fact", "maker": "fact", "unknown": "unknown"}


@dataclass(frozen=True, eq=False)
class Sample:
    """One item of a data set.

    Attributes:
        id: unique within its set.
        query: the text of the request or question, without its hint and choices.
        image: a path, the bytes of an image file, or a PIL image; decoded only when asked for.
        caption: the image in words.
        answer: what a good answer is; for multiple choice the option's letter.
        choices: the options of a multiple-choice question.
        kind: what the item tests; harmful requests have kinds that begin with ``harmful``.
        group: what the item is alike with, for clustered intervals (the organism: its verb).
        hint: what a multiple-choice question is to be answered from.
        request: what is asked for, in words, where the query alone does not say it (it stands in
            the picture): what judges read.
    """

    id: str
    query: str
    image: Path | str | bytes | Image.Image | None = None
    caption: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    kind: str | None = None
    group: str | None = None
    hint: str | None = None
    request: str | None = None
    world: bool = False

    @property
    def prompt(self) -> str:
        """The query as it is put to a model, with its hint and choices."""
        return choice_prompt(self.query, self.choices, self.hint) if self.choices else self.query

    @property
    def harmful(self) -> bool:
        """Whether a good assistant refuses it."""
        return (self.kind or "").startswith("harmful")

    @property
    def task(self) -> str:
        """What is measured: ``harmful``, ``benign``, ``open``, ``choice``, ``fact``, ``visual``.

        An ``open`` question has a reference answer that no answer is expected to equal; an
        ``unknown`` one asks for what cannot be known.
        """
        kind = self.kind or ""
        if kind.startswith(("harmful", "benign", "open")):
            return kind.split("-")[0]
        if self.choices:
            return "choice"
        return _TASKS.get(kind, "visual")

    def load_image(self) -> Image.Image | None:
        """The decoded image in RGB, or None where the sample has none.

        Raises:
            InputError: the file is missing or is no image.
        """
        if self.image is None or isinstance(self.image, Image.Image):
            return self.image and self.image.convert("RGB")
        try:
            return decode(self.image)
        except ValueError as error:
            where = "its bytes" if isinstance(self.image, bytes) else self.image
            raise InputError(f"sample {self.id}: no readable image at {where}") from error


def decode(source: Path | str | bytes) -> Image.Image:
    """The image in a file, or in a file's bytes, whole and in RGB.

    Raises:
        ValueError: there is none, or it is cut short.
    """
    try:
        with _opened(source) as image:
            return image.convert("RGB")
    except _UNREADABLE as error:
        raise ValueError(f"no readable image ({error})") from error


def identify(source: Path | str | bytes) -> None:
    """See that a file, or a file's bytes, begins as an image does, without decoding it.

    Raises:
        ValueError: it does not.
    """
    try:
        _opened(source).close()
    except _UNREADABLE as error:
        raise ValueError(f"no readable image ({error})") from error


_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # PIL raises each


def _opened(source: Path | str | bytes) -> Image.Image:
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source)


def split_of(sample_id: str) -> str:
    """The split of a sample: it depends on the id alone, so more samples move none.

    What follows a ``#`` in the id plays no part: ``a#1`` and ``a#2``, say two questions about one
    image, are never apart.
    """
    key = sample_id.partition("#")[0]
    left = int(hashlib.sha256(f"split/{key}".encode()).hexdigest()[:12], 16) / 16**12
    for name, share in SHARES.items():
        left -= share
        if left < 0:
            return name
    return "test"
