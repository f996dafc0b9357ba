from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cmrm_utils import InputError, Sample
from cmrm_utils.data import Sample as SampleOfData
from cmrm_utils.sample import SHARES, SPLITS, identify, split_of

FIRST_EIGHT = ["test", "test", "test", "test", "anchors", "test", "test", "test"]
"""Splits of ``row 0`` to ``row 7``."""


def test_one_class_by_every_name():
    assert Sample is SampleOfData


def test_prompt_has_hint_and_choices():
    plain = Sample("a", "Which?", hint="unused")
    assert plain.prompt == "Which?"
    ask = "Answer with the option's letter from the given choices directly."
    asked = Sample("a", "Which?", choices=("x", "y"))
    assert asked.prompt == f"Which?\nA. x\nB. y\n{ask}"
    assert asked.query == "Which?"
    hinted = Sample("a", "Which?", choices=("x", "y"), hint="It is y.")
    assert hinted.prompt == f"Context: It is y.\nWhich?\nA. x\nB. y\n{ask}"


@pytest.mark.parametrize(
    ("fields", "task", "harmful"),
    [
        ({"kind": "harmful"}, "harmful", True),
        ({"kind": "harmful-pair"}, "harmful", True),
        ({"kind": "benign-hard"}, "benign", False),
        ({"kind": "open-conv", "answer": "A long one."}, "open", False),
        ({"kind": "choice", "choices": ("x", "y")}, "choice", False),
        ({"kind": "fact"}, "fact", False),
        ({"kind": "colour"}, "visual", False),
        ({}, "visual", False),
    ],
)
def test_tasks(fields, task, harmful):
    sample = Sample("a", "q", **fields)
    assert (sample.task, sample.harmful) == (task, harmful)


def test_images_are_decoded_late_and_in_rgb(tmp_path):
    path = tmp_path / "grey.png"
    sample = Sample("a", "q", image=path)
    Image.new("L", (5, 4), 9).save(path)
    image = sample.load_image()
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (5, 4), (9, 9, 9))
    for inside in (Image.new("L", (5, 4), 9), path.read_bytes()):
        found = Sample("a", "q", image=inside).load_image()
        assert np.array_equal(np.asarray(found), np.asarray(image))
    assert Sample("a", "q").load_image() is None


def cut_png():
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "png")
    return file.getvalue()[:2000]


@pytest.mark.parametrize("content", [None, b"", b"no image", cut_png()])
def test_unreadable_images_are_named(tmp_path, content):
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"sample one: .*bytes"):
            Sample("one", "q", image=content).load_image()
    with pytest.raises(InputError, match=r"sample one: .*x\.png"):
        Sample("one", "q", image=path).load_image()


def test_identify_reads_the_head_alone(tmp_path):
    identify(cut_png())
    for bad in (b"", b"no image", tmp_path / "nowhere.png"):
        with pytest.raises(ValueError, match="no readable image"):
            identify(bad)


def test_splits_have_their_shares_and_never_move():
    found = Counter(split_of(f"row {i}") for i in range(4000))
    assert tuple(SHARES) == SPLITS
    assert SHARES == {"anchors": 0.2, "validation": 0.16, "test": 0.64}
    for name, share in SHARES.items():
        assert found[name] == pytest.approx(4000 * share, abs=100)
    # Published numbers hang on these: they may not change with a release.
    assert [split_of(f"row {i}") for i in range(8)] == FIRST_EIGHT


def test_what_follows_the_hash_sign_moves_nothing():
    for i in range(50):
        assert {split_of(f"row {i}{end}") for end in ("", "#1", "#2", "#a#b")} == {
            split_of(f"row {i}")
        }
