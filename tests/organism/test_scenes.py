from collections import Counter
from hashlib import sha256
from itertools import product
from random import Random

import numpy as np
import pytest
from scipy import ndimage

from cmrm_utils.organism.scenes import SIZE, VALUES, WORDS, Scene

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (38, 70, 220),
    "yellow": (240, 220, 40),
    "purple": (140, 50, 180),
    "cyan": (50, 210, 220),
}
BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (12, 12, 12),
    "grey": (127, 127, 127),
    "brown": (120, 75, 40),
}
COUNTS = ("one", "two", "three", "four")
ATTRIBUTES = ("background", "shape", "colour", "count", "place")


@pytest.fixture(scope="module")
def scenes():
    rng = Random(0)
    return [Scene.random(rng) for _ in range(500)]


def nearest(colour, palette):
    return min(palette, key=lambda name: np.abs(np.subtract(palette[name], colour)).sum())


def mask_of(pixels):
    """Where something else than the background (the top left pixel) is seen."""
    distance = np.linalg.norm(pixels.astype(float) - pixels[0, 0], axis=-1)
    return distance > distance.max() / 2


def test_pixels_are_fixed_by_the_scene(scenes):
    for scene in scenes[:20]:
        assert scene.pixels().shape == (SIZE, SIZE, 3)
        assert scene.pixels().dtype == np.uint8
        assert np.array_equal(scene.pixels(), Scene(**vars(scene)).pixels())
        assert np.array_equal(scene.pixels(), np.asarray(scene.image()))


def test_pixels_are_the_same_everywhere():
    """Trained checkpoints have seen these pixels; they may not vary with machine or release."""
    scene = Scene("grey", "triangle", "red", "three", "bottom left", seed=7)
    assert sha256(scene.pixels().tobytes()).hexdigest()[:16] == "26361f89dee3f8c6"


def test_seeds_differ():
    scenes = [Scene("grey", "ring", "red", "two", "middle", seed) for seed in range(50)]
    assert len({scene.pixels().tobytes() for scene in scenes}) == 50
    assert len({Scene("noise", seed=seed).pixels().tobytes() for seed in range(50)}) == 50


def test_what_the_caption_says_is_seen(scenes):
    for scene in scenes:
        pixels = scene.pixels()
        mask = mask_of(pixels)
        assert nearest(np.median(pixels[~mask], axis=0), BACKGROUNDS) == scene.background
        assert nearest(np.median(pixels[mask], axis=0), COLOURS) == scene.colour
        assert ndimage.label(mask)[1] == 1 + COUNTS.index(scene.count)


def test_places_are_seen(scenes):
    third = SIZE / 3
    for scene in scenes:
        row, col = ndimage.center_of_mass(mask_of(scene.pixels()))
        if scene.place == "middle":
            assert third - 1 < row < 2 * third
            assert third - 1 < col < 2 * third
        else:
            side = ("top" if row < SIZE / 2 else "bottom", "left" if col < SIZE / 2 else "right")
            assert " ".join(side) == scene.place


def shape_of(mask):
    """A shape, told from its outline alone."""
    rows, cols = np.nonzero(mask)
    cut = mask[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    if ndimage.binary_fill_holes(cut).sum() > cut.sum():
        return "ring"
    if cut.mean() > 0.95:
        return "square"
    if cut.mean() > 0.67:
        return "circle"
    return "triangle" if cut[0].sum() < cut[-1].sum() / 2 else "cross"


@pytest.mark.parametrize("shape", VALUES["shape"])
def test_shapes_are_seen(shape):
    for seed, colour in product(range(10), COLOURS):
        scene = Scene("black", shape, colour, "one", "middle", seed)
        assert shape_of(mask_of(scene.pixels())) == shape


def test_attributes_are_drawn_evenly():
    rng = Random(0)
    scenes = [Scene.random(rng) for _ in range(3000)]
    for name in ATTRIBUTES:
        found = Counter(getattr(scene, name) for scene in scenes)
        assert set(found) == set(VALUES[name])
        assert min(found.values()) > 0.8 * 3000 / len(found)


def test_meaningless_pictures_are_plain_or_noise():
    rng = Random(0)
    scenes = [Scene.meaningless(rng) for _ in range(100)]
    found = Counter(scene.background for scene in scenes)
    assert 35 < found["noise"] < 65
    assert set(found) == {"noise", *BACKGROUNDS}
    for scene in scenes:
        pixels = scene.pixels()
        assert not scene.shape
        assert scene.words == (scene.background,)
        if scene.background == "noise":
            assert pixels.std() > 60
        else:
            assert (pixels == pixels[0, 0]).all()
            assert nearest(pixels[0, 0], BACKGROUNDS) == scene.background


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (
            Scene("white", "cross", "blue", "three", "top left"),
            "The image shows three blue crosses at the top left on a white background.",
        ),
        (
            Scene("brown", "ring", "red", "one", "middle"),
            "The image shows one red ring at the middle on a brown background.",
        ),
        (
            Scene("grey", "circle", "cyan", "two", "bottom right"),
            "The image shows two cyan circles at the bottom right on a grey background.",
        ),
        (Scene("noise"), "An empty image with a noise background."),
        (Scene("black"), "An empty image with a black background."),
    ],
)
def test_captions(scene, caption):
    assert scene.caption == caption


def test_captions_tell_scenes_apart():
    every = [Scene(*values).caption for values in product(*(VALUES[name] for name in ATTRIBUTES))]
    assert len(set(every)) == len(every)


def test_short_captions_tell_a_part():
    rng = Random(0)
    scene = Scene("white", "cross", "blue", "three", "top left")
    assert {scene.short_caption(rng) for _ in range(50)} == {
        "The image shows three blue crosses.",
        "The image shows blue crosses at the top left.",
        "The image shows blue crosses on a white background.",
    }
    assert Scene("noise").short_caption(rng) == Scene("noise").caption


def test_words_are_the_values_shown(scenes):
    assert len(set(WORDS)) == len(WORDS)
    for scene in scenes:
        assert set(scene.words) == {getattr(scene, name) for name in ATTRIBUTES}
        assert set(scene.words) <= set(WORDS)


def test_words_are_the_same_everywhere_and_their_own():
    pages = {
        word: Scene("white", seed=5, written=word).pixels() for word in ("forge", "tap", "rig")
    }
    assert sha256(pages["forge"].tobytes()).hexdigest()[:16] == "1fcef36699625b81"
    assert len({page.tobytes() for page in pages.values()}) == 3


@pytest.mark.parametrize("background", ["white", "black", "grey", "brown"])
@pytest.mark.parametrize("word", ["tap", "sabotage", "counterfeit"])
def test_a_word_stands_whole_and_legible_on_its_background(word, background):
    pixels = Scene(background, seed=9, written=word).pixels()
    ink = mask_of(pixels)
    assert 0.02 < ink.mean() < 0.3
    assert not ink[0].any()
    assert not ink[-1].any()
    contrast = np.abs(pixels[ink].mean() - pixels[~ink].mean())
    assert contrast > 80
    assert Scene(background, written=word).caption == f"The image says {word}."
