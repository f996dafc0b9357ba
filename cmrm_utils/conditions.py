"""Image conditions: the image beside a sample's query, with its key, name and colour."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image, ImageFilter

from cmrm_utils.errors import InputError
from cmrm_utils.sample import Sample

DEFAULT_SIZE = (336, 336)
"""Size of the meaningless image of a sample without an image."""


CONDITIONS = ("none", "caption", "own", "blank", "noise")
"""The image conditions that every table shows, in this order."""


IN_WORDS = ("none", "caption")
"""Conditions without an image. A language model alone can be asked in them too."""


def _plain(size: tuple[int, int], level: int) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def _noise(sample: Sample, seed: int) -> Image.Image:
    """Uniform noise at the size of the sample's own image, equal for equal size and seed."""
    size = _size(sample)
    return Image.frombytes("RGB", size, _noise_pixels(size, seed))


@lru_cache(maxsize=64)
def _noise_pixels(size: tuple[int, int], seed: int) -> bytes:
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8).tobytes()


def _blur(sample: Sample) -> Image.Image:
    image = _own(sample)
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 6))


def _gaussian(sample: Sample, spread: float) -> Image.Image:
    """The own image plus normal noise; ``spread`` is its standard deviation, of 255 levels."""
    own = np.asarray(_own(sample), dtype=np.float64)
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal(own.shape)
    return Image.fromarray(np.clip(np.rint(own + spread * noise), 0, 255).astype(np.uint8))


def _jpeg(sample: Sample, quality: int) -> Image.Image:
    """The own image after JPEG compression at this quality."""
    packed = BytesIO()
    _own(sample).save(packed, "JPEG", quality=quality)
    return Image.open(packed).convert("RGB")


def _crop(sample: Sample, percent: int) -> Image.Image:
    """The centre of the own image, ``percent`` of each side, resized to the whole size."""
    own = _own(sample)
    left, top = ((side - side * percent / 100) / 2 for side in own.size)
    box = (left, top, own.width - left, own.height - top)
    return own.resize(own.size, Image.Resampling.BICUBIC, box)


def _own(sample: Sample) -> Image.Image:
    image = sample.load_image()
    if image is None:
        raise InputError(f"sample {sample.id} has no image of its own")
    return image


def _size(sample: Sample) -> tuple[int, int]:
    image = sample.load_image()
    return image.size if image else DEFAULT_SIZE


SETTLED = 2 * 10**9
"""Nanoseconds after which a file can be trusted to get a new time with its next write."""


_keys: WeakKeyDictionary[Sample, dict[str, tuple[Any, str]]] = WeakKeyDictionary()
"""For each sample and condition, the image's source and its key."""


def image_key(sample: Sample, condition: str) -> str:
    """A hash of an image's pixels, cached while its source is unchanged: decoding is slow."""
    if condition in IN_WORDS:
        return "none"
    keys, source = _keys.setdefault(sample, {}), _source(sample)
    state = (IMAGES[condition], source)
    if source is not None and condition in keys and keys[condition][0] == state:
        return keys[condition][1]
    image = IMAGES[condition](sample)
    key = "none" if image is None else _digest(image)
    keys[condition] = (state, key)
    return key


def _source(sample: Sample) -> Any:
    """A value that changes with a sample's image; None if only the pixels can tell.

    A file that was just written may be written again within the same tick of its clock.
    """
    image = sample.image
    if isinstance(image, Image.Image):
        return _digest(_own(sample))
    if not isinstance(image, str | os.PathLike):
        return "none" if image is None else image
    try:
        seen = os.stat(image)
    except OSError:
        return None
    if time.time_ns() - max(seen.st_mtime_ns, seen.st_ctime_ns) < SETTLED:
        return None
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}\0".encode() + image.tobytes()).hexdigest()[:24]


NOISES = ("noise-0", "noise-1", "noise-2", "noise-3")
"""Fixed noise images; the shift to ``noise`` is averaged over them."""


@dataclass(frozen=True)
class Condition:
    """An image condition.

    Attributes:
        picture: the picture that a sample is shown with; None for no picture.
        label: its name in tables and figures.
        colour: its colour in figures, as ``#RRGGBB``.
        of_own: whether the picture is made from the sample's own image. A sample
            without one cannot be shown in it.
    """

    picture: Callable[[Sample], Image.Image | None]
    label: str
    colour: str
    of_own: bool = False


RECORDS = {
    "own": Condition(_own, "own image", "#D55E00", True),
    "none": Condition(lambda sample: None, "text only", "#0072B2"),
    "caption": Condition(lambda sample: None, "caption as text", "#56B4E9"),
    "blank": Condition(lambda sample: _plain(_size(sample), 127), "blank image", "#555555"),
    "black": Condition(lambda sample: _plain(_size(sample), 0), "black image", "#000000"),
    "white": Condition(lambda sample: _plain(_size(sample), 255), "white image", "#BBBBBB"),
    "blur": Condition(_blur, "blurred image", "#E69F00", True),
    "noise": Condition(partial(_noise, seed=0), "noise image", "#CC79A7"),
    **{
        name: Condition(partial(_noise, seed=seed), f"noise image {seed}", "#CC79A7")
        for seed, name in enumerate(NOISES)
    },
    # The own image, perturbed: noise in levels, JPEG quality, crop in percent of each side.
    "gaussian-16": Condition(partial(_gaussian, spread=16), "Gaussian noise, 16", "#CC79A7", True),
    "gaussian-64": Condition(partial(_gaussian, spread=64), "Gaussian noise, 64", "#CC79A7", True),
    "jpeg-20": Condition(partial(_jpeg, quality=20), "JPEG, quality 20", "#E69F00", True),
    "jpeg-5": Condition(partial(_jpeg, quality=5), "JPEG, quality 5", "#E69F00", True),
    "crop-75": Condition(partial(_crop, percent=75), "crop, 75% a side", "#009E73", True),
    "crop-50": Condition(partial(_crop, percent=50), "crop, 50% a side", "#009E73", True),
}
"""Every image condition by its key. A new one is one more record here."""


IMAGES = {key: record.picture for key, record in RECORDS.items()}
"""The picture that a sample is shown with, by image condition."""


OF_OWN = tuple(key for key, record in RECORDS.items() if record.of_own)
"""The conditions that need the sample's own image."""


CONDITION_NAMES = {key: record.label for key, record in RECORDS.items()}


CONDITION_COLOURS = {key: record.colour for key, record in RECORDS.items()}
