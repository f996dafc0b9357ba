"""Image conditions: the image beside a sample's query, with its key, name and colour."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from io import BytesIO
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image, ImageFilter

from cmrm_utils.errors import InputError
from cmrm_utils.sample import Sample

CONDITION_COLOURS = {
    "none": "#0072B2",
    "caption": "#56B4E9",
    "own": "#D55E00",
    "blank": "#555555",
    "noise": "#CC79A7",
    "black": "#000000",
    "white": "#BBBBBB",
    "blur": "#E69F00",
    "gaussian-16": "#CC79A7",
    "gaussian-64": "#CC79A7",
    "jpeg-20": "#E69F00",
    "jpeg-5": "#E69F00",
    "crop-75": "#009E73",
    "crop-50": "#009E73",
}


CONDITION_NAMES = {
    "none": "text only",
    "caption": "caption as text",
    "own": "own image",
    "blank": "blank image",
    "noise": "noise image",
    "black": "black image",
    "white": "white image",
    "blur": "blurred image",
    "gaussian-16": "Gaussian noise, 16",
    "gaussian-64": "Gaussian noise, 64",
    "jpeg-20": "JPEG, quality 20",
    "jpeg-5": "JPEG, quality 5",
    "crop-75": "crop, 75% a side",
    "crop-50": "crop, 50% a side",
}


DEFAULT_SIZE = (336, 336)
"""Size of the meaningless image of a sample without an image."""


CONDITIONS = ("none", "caption", "own", "blank", "noise")
"""The image conditions that every table shows, in this order."""


IN_WORDS = ("none", "caption")
"""Conditions without an image, which also work for a language model alone."""


def _plain(size: tuple[int, int], level: int) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def _noise(size: tuple[int, int], seed: int) -> Image.Image:
    """Uniform noise, equal for equal size and seed; each call returns a new image."""
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
"""Age in nanoseconds from which a file's time shows every later write."""


_keys: WeakKeyDictionary[Sample, dict[str, tuple[Any, str]]] = WeakKeyDictionary()
"""For each sample and condition, the image's source and its key."""


def image_key(sample: Sample, condition: str) -> str:
    """A hash of an image's pixels, cached while its source is unchanged: decoding is slow."""
    if condition in IN_WORDS:
        return "none"
    kept, source = _keys.setdefault(sample, {}), _source(sample)
    state = (IMAGES[condition], source)
    if source is not None and condition in kept and kept[condition][0] == state:
        return kept[condition][1]
    image = IMAGES[condition](sample)
    key = "none" if image is None else _digest(image)
    kept[condition] = (state, key)
    return key


def _source(sample: Sample) -> Any:
    """A value that changes with a sample's image; None if only the pixels can tell.

    A file that was just written may be written again within the same tick of its clock.
    """
    image = sample.image
    if isinstance(image, Image.Image):
        own = sample.load_image()
        return own and _digest(own)
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


PERTURBED: dict[str, Callable[[Sample], Image.Image]] = {
    "gaussian-16": partial(_gaussian, spread=16),
    "gaussian-64": partial(_gaussian, spread=64),
    "jpeg-20": partial(_jpeg, quality=20),
    "jpeg-5": partial(_jpeg, quality=5),
    "crop-75": partial(_crop, percent=75),
    "crop-50": partial(_crop, percent=50),
}
"""The own image, perturbed: noise in levels, JPEG quality, crop in percent of each side."""


IMAGES: dict[str, Callable[[Sample], Image.Image | None]] = {
    "own": _own,
    "none": lambda sample: None,
    "caption": lambda sample: None,
    "blank": lambda sample: _plain(_size(sample), 127),
    "black": lambda sample: _plain(_size(sample), 0),
    "white": lambda sample: _plain(_size(sample), 255),
    "blur": _blur,
    "noise": lambda sample: _noise(_size(sample), 0),
    **{name: lambda s, i=i: _noise(_size(s), i) for i, name in enumerate(NOISES)},  # type: ignore[misc]
    **PERTURBED,
}
"""The image of a sample in each condition. A new condition is one more entry."""


OF_OWN = ("own", "blur", *PERTURBED)
"""Conditions that need the sample's own image."""


def mean_image(samples: Iterable[Sample]) -> Image.Image:
    """The mean of the samples' own images, pixel by pixel, at the size of the first.

    Raises:
        InputError: no sample has an image.
    """
    shown = [image for sample in samples if (image := sample.load_image()) is not None]
    if not shown:
        raise InputError("no sample has an image to take the mean of")
    total = sum(np.asarray(each.resize(shown[0].size), dtype=np.float64) for each in shown)
    return Image.fromarray(np.rint(total / len(shown)).astype(np.uint8))
