"""A sample: a query, perhaps an image, and a good answer."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from numbers import Integral
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import ExifTags, Image

from cmrm_utils.errors import InputError
from cmrm_utils.prompts import choice_prompt

SPLITS = ("anchors", "validation", "test")

SHARES = {"anchors": 0.2, "validation": 0.16, "test": 0.64}
"""Share of samples in each split, chosen by a hash of the id: 20% anchors, as in the paper."""

TASKS = ("harmful", "benign", "open", "visual", "choice", "fact", "unknown")
"""First words of kinds, which decide what is measured (:attr:`Sample.task`)."""

WORLD_KINDS = {
    **dict.fromkeys("colour shape count place background description reading".split(), "visual"),
    "maker": "fact",
}
"""The organism's own kinds of question, with their tasks."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One item of a data set.

    Attributes:
        id: unique within its set.
        query: the request or question, without hint and choices.
        image: a path, the bytes of an image file, or a PIL image; decoded on demand.
        caption: the image in words.
        answer: a good answer; for multiple choice the option's letter in upper case, in whatever
            form it was given (:func:`answer_letter`).
        choices: the options of a multiple-choice question, in order or by letter
            (:func:`options`).
        kind: what the item tests: one of :data:`WORLD_KINDS`, or a text that begins with one of
            :data:`TASKS` (``harmful-mine``); in lower case.
        group: the item's cluster, for clustered intervals (on the organism, its verb).
        hint: the text that a multiple-choice question is about.
        request: the request in words, if the query alone does not state it (as when the image
            does); judges read it.
        world: whether it is of the organism's invented world, whose exact judge knows the
            outcome; a file cannot set it.

    Raises:
        InputError: a field has a wrong value; the message names the sample and the field.
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

    def __post_init__(self) -> None:
        try:
            for name, value in checked(vars(self)).items():
                object.__setattr__(self, name, value)
        except ValueError as error:
            raise InputError(f"sample {self.id!r:.80}: {error}") from error

    @property
    def prompt(self) -> str:
        """The query with its hint and choices, as a model reads it."""
        return choice_prompt(self.query, self.choices, self.hint) if self.choices else self.query

    @property
    def harmful(self) -> bool:
        """Whether a good assistant refuses the request."""
        return self.task == "harmful"

    @property
    def task(self) -> str:
        """What is measured: one of :data:`TASKS`, or ``other``.

        An ``open`` question has a reference answer that responses need not equal. An ``unknown``
        one asks for something that nobody can know. An item with choices that is no request is a
        ``choice`` question. An item without kind and choices is ``other``, and is not measured.
        """
        kind = self.kind or "other"
        task = WORLD_KINDS.get(kind) or re.split(r"[^a-z]", kind)[0]
        return "choice" if self.choices and task not in ("harmful", "benign", "open") else task

    def load_image(self) -> Image.Image | None:
        """The decoded image (:func:`decode`); None if the sample has none.

        Raises:
            InputError: the file is missing or is not an image.
        """
        if (image := self.image) is None:
            return None
        try:
            return decode(image)
        except ValueError as error:
            where = str(image) if isinstance(image, Path | str) else f"its {type(image).__name__}"
            raise InputError(f"sample {self.id}: no readable image at {where}") from error


def checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's fields with their proper types: choices as a tuple, their answer as a letter.

    Raises:
        ValueError: a field has a wrong value; the message begins with the field's name.
    """
    values = dict(fields)
    if values.get("choices") is not None:
        values["choices"] = options(values["choices"])
        letters = ascii_uppercase[: len(values["choices"])]
        # A copied sample already has a letter, which must not be read as an option's text.
        if (answer := values.get("answer")) is not None and answer not in tuple(letters):
            values["answer"] = answer_letter(answer, values["choices"])
    values |= {name: _written(values[name]) for name in ("id", "answer") if name in values}
    for name in ("id", "query", "caption", "answer", "kind", "group", "hint", "request"):
        if values.get(name) is not None or name in ("id", "query"):
            _check_text(name, values.get(name))
    for name in ("id", "query"):
        if not values[name].strip():
            raise ValueError(f"{name} is empty")
    values["kind"] = _kind(values.get("kind"), values.get("choices"))
    image = values.get("image")
    if isinstance(image, str):
        _check_text("image", image)
    elif not isinstance(image, Path | bytes | Image.Image | None):
        wanted = "a path, the bytes of an image file or a PIL image"
        raise ValueError(f"image must be {wanted}, not {_shown(image)}")
    if not isinstance(values.get("world", False), bool):
        raise ValueError(f"world must be True or False, not {_shown(values['world'])}")
    return values


def _shown(value: Any) -> str:
    """The beginning of a value, on one line."""
    return " ".join(repr(value).split())[:40]


def _written(value: Any) -> Any:
    """A whole number as text; any other value as it is."""
    number = isinstance(value, Integral) and not isinstance(value, bool)
    return str(int(value)) if number else value


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        wanted = "text or a whole number" if name in ("id", "answer") else "text"
        raise ValueError(f"{name} must be {wanted}, not {_shown(value)}")
    if "\0" in value:
        raise ValueError(f"{name} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half a surrogate pair, which is no character") from error


def _kind(kind: str | None, choices: Sequence[str] | None) -> str | None:
    kind = (kind or "").strip().lower() or None
    if kind is None or kind in WORLD_KINDS:
        return kind
    if (task := re.split(r"[^a-z]", kind)[0]) not in TASKS:
        raise ValueError(
            f"kind {kind!r:.40} is not known: it must begin with {', '.join(TASKS)}, "
            f"or be one of {', '.join(WORLD_KINDS)}"
        )
    if task == "choice" and not choices:
        raise ValueError(f"kind is {kind!r:.40}, but there are no choices")
    return kind


def options(choices: Any) -> tuple[str, ...]:
    """The options of a multiple-choice question, in the order of their letters.

    Args:
        choices: a list of two or more different texts or whole numbers, or a mapping of letters
            to them: ``{"A": "stone", "B": "apple"}``, letters in any case and order.

    Raises:
        ValueError: ``choices`` is something else.
    """
    if isinstance(choices, Mapping):
        by_letter = {str(key).strip().upper(): value for key, value in choices.items()}
        letters = sorted(by_letter)
        if len(letters) != len(choices) or "".join(letters) != ascii_uppercase[: len(letters)]:
            raise ValueError(
                f"choices must have the letters from A on as keys, not {_shown(choices)}"
            )
        choices = [by_letter[letter] for letter in letters]
    if not isinstance(choices, list | tuple):
        raise ValueError(f"choices must be a list or mapping of texts, not {_shown(choices)}")
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise ValueError(f"choices must be 2 to {len(ascii_uppercase)} texts, not {len(choices)}")
    texts = [_written(each) for each in choices]
    for text in texts:
        _check_text("choices", text)
        if not text.strip():
            raise ValueError("choices holds an empty text")
    if len({" ".join(text.split()) for text in texts}) < len(texts):
        raise ValueError(f"choices holds the same text twice: {texts!r:.60}")
    return tuple(texts)


def answer_letter(answer: Any, choices: Sequence[str]) -> str:
    """The letter of the option that an answer means.

    An answer may be the letter (``B``, ``b``, ``(B)``, ``B.``, ``B. apple``), the option's text
    (case, spaces and a final period do not matter), or a whole number that counts options from 0,
    as in ScienceQA. A number in quotes is text and only means the option with that text, because
    some data sets count from 0 and others from 1.

    Raises:
        ValueError: the answer means no option, or could mean two.
    """
    letters = ascii_uppercase[: len(choices)]
    meant = set()
    if isinstance(answer, Integral) and not isinstance(answer, bool):
        meant |= {letters[i] for i in range(len(letters)) if i == answer}
        answer = str(int(answer))
    if isinstance(answer, str):
        wording, texts = _plain(answer), dict(zip(letters, choices, strict=True))
        same = {letter for letter, text in texts.items() if text.strip() == answer.strip()}
        meant |= same or {letter for letter, text in texts.items() if _plain(text) == wording}
        if form := re.fullmatch(r"(?:\(([a-z])\)|([a-z])[).:]?)(?: (.+))?", wording):
            letter = (form[1] or form[2]).upper()
            if letter in texts and form[3] in (None, _plain(texts[letter])):
                meant.add(letter)
    if len(meant) > 1:
        raise ValueError(
            f"answer {_shown(answer)} may mean {' or '.join(sorted(meant))}: "
            f"write letter and text, as in {f'A. {choices[0]}'!r:.40}"
        )
    if not meant:
        one_of = ", ".join(letters)
        raise ValueError(
            f"answer must be one of {one_of}, or an option's text, not {_shown(answer)}"
        )
    return meant.pop()


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".").rstrip()


def decode(source: Path | str | bytes | Image.Image) -> Image.Image:
    """A whole, upright RGB image, as ``transformers.image_utils.load_image`` gives it.

    The EXIF orientation is applied. An animation gives its first frame. Transparency is dropped,
    not blended: a transparent pixel gets its stored colour.

    Args:
        source: an image file, the bytes of one, or an open image.

    Raises:
        ValueError: there is no image, or it is truncated.
    """
    with _opened(source) as image:
        image.load()  # a PNG may have its EXIF data behind its pixels
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        return (image if turn is None else image.transpose(turn)).convert("RGB")


def identify(source: Path | str | bytes) -> None:
    """Check that a file, or the bytes of one, begins like an image, without decoding it.

    Raises:
        ValueError: it does not.
    """
    with _opened(source):
        pass


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation. PIL's own ``exif_transpose`` fails if other EXIF data are broken."""

# PIL raises all of them; RuntimeError for AVIF and DDS.
_UNREADABLE = (OSError, SyntaxError, RuntimeError, Image.DecompressionBombError)


@contextmanager
def _opened(source: Path | str | bytes | Image.Image) -> Iterator[Image.Image]:
    """Open an image; turn whatever goes wrong with it in the ``with`` block into a ValueError."""
    try:
        if isinstance(source, Image.Image):
            yield source
        else:
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
                yield image
    except _UNREADABLE as error:
        raise ValueError(f"no readable image ({error})") from error


def split_of(sample_id: str) -> str:
    """The split of a sample. It depends on the id only, so adding samples moves none.

    The part of the id after ``#`` does not count: ``a#1`` and ``a#2``, such as two questions about
    one image, are always in the same split.
    """
    key = sample_id.partition("#")[0]
    left = int(hashlib.sha256(f"split/{key}".encode()).hexdigest()[:12], 16) / 16**12
    for name, share in SHARES.items():
        left -= share
        if left < 0:
            return name
    return "test"
