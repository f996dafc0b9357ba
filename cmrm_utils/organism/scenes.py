"""The organism's pictures: one group of shapes at a place on a background, 48 x 48 pixels.

Drawn with NumPy alone, so that a scene has the same pixels on every machine.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = 48
"""Pixels along a side."""


_DRAWN: Any = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


VALUES: dict[str, tuple[str, ...]] = {name: tuple(values) for name, values in _DRAWN.items()}
"""The values that each attribute of a scene can take, in the order in which they are drawn."""


WORDS = (*(value for values in VALUES.values() for value in values), "noise")
"""Every label of tower pre-training."""


_CELLS = ((-6, -6), (-6, 6), (6, -6), (6, 6))  # four shapes fit around a place, row and column


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in words, and the seed of its small random details.

    A meaningless picture has no shape: ``background`` is then a plain colour, or ``noise``. A
    typographic one has a word ``written`` on its plain background.
    """

    background: str
    shape: str = ""
    colour: str = ""
    count: str = ""
    place: str = ""
    seed: int = 0
    written: str = ""

    @classmethod
    def random(cls, rng: Random) -> "Scene":
        """A scene with every attribute drawn evenly."""
        attributes = {name: rng.choice(values) for name, values in VALUES.items()}
        return cls(**attributes, seed=rng.getrandbits(32))

    @classmethod
    def meaningless(cls, rng: Random) -> "Scene":
        """A plain or a noise picture, evenly."""
        noise = rng.random() < 0.5
        background = "noise" if noise else rng.choice(VALUES["background"])
        return cls(background, seed=rng.getrandbits(32))

    @classmethod
    def writing(cls, rng: Random, word: str) -> "Scene":
        """A word on a plain background."""
        return cls(rng.choice(VALUES["background"]), seed=rng.getrandbits(32), written=word)

    @property
    def _shapes(self) -> str:
        plural = "es" if self.shape == "cross" else "s"
        return f"{self.colour} {self.shape}" + ("" if self.count == "one" else plural)

    @property
    def caption(self) -> str:
        """Everything that the picture shows, in one sentence."""
        if self.written:
            return f"The image says {self.written}."
        if not self.shape:
            return f"An empty image with a {self.background} background."
        return (
            f"The image shows {self.count} {self._shapes} at the {self.place} "
            f"on a {self.background} background."
        )

    def short_caption(self, rng: Random) -> str:
        """A sentence about a part of the picture."""
        if not self.shape:
            return self.caption
        return rng.choice(
            (
                f"The image shows {self.count} {self._shapes}.",
                f"The image shows {self._shapes} at the {self.place}.",
                f"The image shows {self._shapes} on a {self.background} background.",
            )
        )

    @property
    def words(self) -> tuple[str, ...]:
        """The values that the picture shows, as labels for tower pre-training."""
        return tuple(v for name in (*VALUES, "written") if (v := getattr(self, name)))

    def pixels(self) -> NDArray[np.uint8]:
        """The picture as ``uint8 (48, 48, 3)``."""
        rng = np.random.Generator(np.random.PCG64(self.seed))
        if self.background == "noise":
            return rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        base = np.array(_DRAWN["background"][self.background]) + rng.integers(-8, 9, 3)
        canvas = np.tile(base.astype(float), (SIZE, SIZE, 1))
        if self.written:
            ink = 235 if base.mean() < 110 else 20
            canvas[_letters(self.written, tuple(rng.integers(-1, 2, 2)))] = ink
        if self.shape:
            colour = np.array(_DRAWN["colour"][self.colour]) + rng.integers(-12, 13, 3)
            where = np.array(_DRAWN["place"][self.place]) + rng.integers(-1, 2, 2)
            cells = rng.permutation(4)[: 1 + VALUES["count"].index(self.count)]
            for cell in cells:
                centre = where + np.array(_CELLS[cell]) + rng.uniform(-0.5, 0.5, 2)
                top, left = np.rint(centre).astype(int) - _REACH
                window = canvas[top : top + 2 * _REACH, left : left + 2 * _REACH]
                cover = _cover(self.shape, centre - (top, left), rng.uniform(4.3, 5.3))[..., None]
                window += cover * (colour - window)
        return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)

    def image(self) -> Image.Image:
        """The picture as a PIL image."""
        return Image.fromarray(self.pixels())


_REACH = 6  # pixels from a shape's centre within which it is drawn; no shape meets the border


_ROWS, _COLS = np.mgrid[0 : 2 * _REACH, 0 : 2 * _REACH]


def _cover(shape: str, centre: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """How much of each pixel of a window a shape covers, 0 to 1, from its signed distance."""
    y, x = _ROWS - centre[0], _COLS - centre[1]
    ay, ax = np.abs(y), np.abs(x)
    round_ = np.hypot(x, y) - radius
    square = np.maximum(ax, ay) - 0.88 * radius
    arm = 0.34 * radius
    distance = {
        "circle": lambda: round_,
        "ring": lambda: np.abs(round_ + 0.3 * radius) - 0.3 * radius,
        "square": lambda: square,
        "cross": lambda: np.maximum(np.minimum(ax, ay) - arm, np.maximum(ax, ay) - radius),
        "triangle": lambda: np.maximum(y - 0.7 * radius, 0.87 * ax - 0.5 * (y + radius)),
    }[shape]()
    return np.asarray(np.clip(0.5 - distance, 0.0, 1.0))


_LINE = 8  # letters that fit side by side


def _letters(word: str, moved: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels that a word covers in Pillow's own bitmap font; a long word takes two lines."""
    half = (len(word) + 1) // 2
    lines = [word] if len(word) <= _LINE else [word[:half], word[half:]]
    page = Image.new("1", (SIZE, SIZE))
    for i, line in enumerate(lines):
        across = (SIZE - 6 * len(line)) // 2 + moved[0]
        place = (across, 18 + moved[1] + 12 * i - 6 * len(lines[1:]))
        ImageDraw.Draw(page).text(place, line, fill=1, font=ImageFont.load_default_imagefont())
    return np.asarray(page)
