import os
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from cmrm_utils import InputError, Sample, Trial, table
from cmrm_utils import conditions as trials_module
from cmrm_utils.conditions import (
    CONDITIONS,
    DEFAULT_SIZE,
    IMAGES,
    NOISES,
    OF_OWN,
)
from cmrm_utils.edits import Edit
from cmrm_utils.trials import grid


def picture(seed=0, size=(20, 12)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def edit(scale=1.0, tokens="all", **settings):
    return Edit(scale * torch.ones(2, 4), tokens, settings=settings)


FULL = Sample("a", "What is shown?", picture(), "Noise.", "C", ("x", "y", "z"), "choice", group="g")
TEXT = Sample("b", "How do I warm a lamp?", kind="benign")


def test_id_is_stable():
    """Stored responses go by it: a change of the hash throws every run away."""
    wanted = sha256(b"How do I warm a lamp?\0none\0none").hexdigest()[:24]
    assert Trial(TEXT, "none").id == wanted == "ce33a2a3c7d4755332c780b7"
    assert (
        Trial(Sample("c", "q", Image.new("RGB", (2, 1), (1, 2, 3)))).id
        == "d5c72c552e0d3f4c48f2c6c8"
    )
    assert Trial(TEXT, "none", Edit(torch.ones(2, 4))).id == "1fd5c18ebffb10a027b2926b"


def test_id_is_of_what_the_model_is_given(tmp_path):
    path = tmp_path / "p.png"
    picture().save(path)
    base = Trial(Sample("a", "q", picture()))
    equal = [
        Trial(Sample("another", "q", picture(), caption="c", kind="open", group="g")),
        Trial(Sample("a", "q", path)),
        Trial(Sample("a", "q", str(path))),
        Trial(Sample("a", "q", picture()), "own", edit(0.0)),
        Trial(Sample("a", "q", picture()), "own", edit(0.0, "last")),
        Trial(Sample("a", "other", picture()), prompt="q"),
    ]
    assert {trial.id for trial in equal} == {base.id}
    other = [
        Trial(Sample("a", "q2", picture())),
        Trial(Sample("a", "q", picture(1))),
        Trial(Sample("a", "q", picture().transpose(Image.Transpose.ROTATE_180))),
        Trial(Sample("a", "q", picture()), "none"),
        Trial(Sample("a", "q", picture()), "blank"),
        Trial(Sample("a", "q", picture()), "own", edit()),
        Trial(Sample("a", "q", picture()), "own", edit(2.0)),
        Trial(Sample("a", "q", picture()), "own", edit(tokens="last")),
        Trial(Sample("a", "q", picture(), choices=("x", "y"))),
        Trial(Sample("a", "q", picture()), prompt="p"),
    ]
    ids = {trial.id for trial in other}
    assert len(ids) == len(other)
    assert base.id not in ids


def test_size_is_part_of_a_picture():
    """The same bytes in another shape are another picture."""
    flat = [Image.new("RGB", size, (5, 5, 5)) for size in ((4, 2), (2, 4), (8, 1))]
    assert len({Trial(Sample("a", "q", image)).id for image in flat}) == 3


def test_a_grey_picture_of_ones_own_is_blank():
    grey = Sample("a", "q", Image.new("RGB", (20, 12), (127, 127, 127)))
    assert Trial(grey, "own").id == Trial(Sample("b", "q", picture()), "blank").id


def test_ids_of_sample_level_edits_are_of_the_own_row():
    rows = Edit(torch.stack([torch.ones(2, 4), 2 * torch.ones(2, 4)]), sample_ids=("a", "b"))
    assert Trial(TEXT, "none", rows).id == Trial(TEXT, "none", edit(2.0)).id
    with pytest.raises(InputError, match="'c'"):
        Trial(Sample("c", "q"), "none", rows)


def test_alpha_0_is_no_edit():
    assert Trial(TEXT, "none", edit(0.0)).active_edit is None
    assert Trial(TEXT, "none").active_edit is None
    kept = edit()
    assert Trial(TEXT, "none", kept).active_edit is kept


def test_text():
    with_choices = FULL.prompt
    assert Trial(FULL, "own").text == with_choices
    assert Trial(FULL, "none").text == with_choices
    assert Trial(FULL, "caption").text == f"Image caption: Noise.\n{with_choices}"
    assert Trial(FULL, "own", prompt="Instead.").text == "Instead."
    assert Trial(FULL, "caption", prompt="Instead.").text == "Instead."
    with pytest.raises(InputError, match="sample b has no caption"):
        _ = Trial(TEXT, "caption").text


def pixels(condition, sample=FULL):
    image = Trial(sample, condition).load_image()
    assert image.mode == "RGB"
    return np.asarray(image)


def test_pictures_of_each_condition():
    own = np.asarray(picture())
    assert np.array_equal(pixels("own"), own)
    for condition, level in (("blank", 127), ("black", 0), ("white", 255)):
        assert pixels(condition).shape == own.shape
        assert (pixels(condition) == level).all()
    blurred = pixels("blur")
    assert blurred.shape == own.shape
    assert 0 < blurred.std() < own.std() / 3
    assert blurred.mean() == pytest.approx(own.mean(), abs=6)
    for condition in ("none", "caption"):
        assert Trial(FULL, condition).load_image() is None


def test_noise_is_fixed():
    large = Sample("a", "q", picture(size=(90, 80)))
    for name in NOISES:
        found = pixels(name, large)
        assert found.shape == (80, 90, 3)
        assert np.array_equal(found, pixels(name, Sample("b", "q", picture(1, (90, 80)))))
        assert found.mean() == pytest.approx(127.5, abs=3)
        assert found.std() == pytest.approx(73.9, abs=3)
    assert len({pixels(name, large).tobytes() for name in NOISES}) == len(NOISES)


def test_meaningless_pictures_for_samples_without_one():
    for condition in ("blank", "noise", "black", "white"):
        assert Trial(TEXT, condition).load_image().size == DEFAULT_SIZE
    for condition in OF_OWN:
        with pytest.raises(InputError, match="sample b has no image"):
            Trial(TEXT, condition).load_image()
    assert not grid([TEXT], images=OF_OWN)


SMOOTH = np.linspace(60, 190, 90)[None, :, None] + np.linspace(-40, 40, 60)[:, None, None]
LARGE = Sample("a", "q", Image.fromarray(np.repeat(SMOOTH, 3, axis=2).astype(np.uint8)))


def test_perturbed_pictures_are_the_own_one_changed():
    own = pixels("own", LARGE).astype(float)
    for condition in "gaussian-16 gaussian-64 jpeg-20 jpeg-5 crop-75 crop-50".split():
        found = pixels(condition, LARGE)
        assert found.shape == own.shape
        assert np.array_equal(found, pixels(condition, LARGE))
        assert 0.3 < np.abs(found - own).mean() < 60
    for spread in (16, 64):
        moved = pixels(f"gaussian-{spread}", LARGE) - own
        assert moved[20:40, 30:60].std() == pytest.approx(spread, rel=0.1)
        assert abs(moved.mean()) < spread / 10
    worse, better = (np.abs(pixels(f"jpeg-{q}", LARGE) - own).mean() for q in (5, 20))
    assert worse > better


def test_a_crop_is_the_middle_enlarged():
    own = pixels("own", LARGE).astype(float)
    for percent in (50, 75):
        found = pixels(f"crop-{percent}", LARGE).astype(float)
        slope = (found[30, 80, 0] - found[30, 10, 0]) / (own[30, 80, 0] - own[30, 10, 0])
        assert slope == pytest.approx(percent / 100, abs=0.03)
        assert found[30, 45, 0] == pytest.approx(own[30, 45, 0], abs=2)


def test_has_image():
    for condition in IMAGES:
        trial = Trial(FULL, condition)
        assert trial.has_image == (trial.load_image() is not None)


def test_unknown_condition():
    with pytest.raises(InputError, match=r"'blink'; did you mean 'blank'. there are .*blank"):
        Trial(TEXT, "blink")


def test_grid():
    edits = [None, edit()]
    trials = grid([FULL, TEXT], images=CONDITIONS, edits=edits)
    found = [(t.sample.id, t.image, t.edit) for t in trials]
    wanted = [(s.id, i, e) for i in CONDITIONS for e in edits for s in (FULL, TEXT)]
    lacking = {("b", "own"), ("b", "caption")}
    assert found == [row for row in wanted if row[:2] not in lacking]
    assert [t.sample.id for t in grid([FULL, TEXT], images=["blur", "crop-50"])] == ["a", "a"]
    assert [(t.image, t.edit) for t in grid([FULL])] == [("own", None)]
    assert len(grid((s for s in [FULL, TEXT]), images=["none", "blank"])) == 4


def test_table():
    trials = [
        Trial(FULL, "own", edit(method="CMRM dataset", alpha=0.5, layers="0,1")),
        Trial(TEXT, "none"),
    ]
    rows = table(trials, ["B", "First, zib it."])
    first, second = rows.to_dict("records")
    assert first == {
        "trial": trials[0].id,
        "sample": "a",
        "kind": "choice",
        "task": "choice",
        "group": "g",
        "world": False,
        "image": "own",
        "method": "CMRM dataset",
        "alpha": 0.5,
        "layers": "0,1",
        "query": FULL.prompt,
        "request": FULL.prompt,
        "answer": "C",
        "choices": ("x", "y", "z"),
        "response": "B",
    }
    assert (second["method"], second["alpha"], second["group"]) == ("none", 0.0, "b")
    assert (second["task"], second["image"], second["query"]) == ("benign", "none", TEXT.query)
    assert second["response"] == "First, zib it."
    with pytest.raises(ValueError, match="2 trials but 1 responses"):
        table(trials, ["B"])
    assert set(table([], [])) == set(rows) - {"layers"}


def test_what_stands_in_the_picture_is_told_to_judges():
    sample = replace(
        FULL, query="How do I do this?", choices=None, kind="visual", request="How do I open it?"
    )
    rows = table([Trial(sample), Trial(FULL)], ["x", "y"])
    assert list(rows["query"]) == ["How do I do this?", FULL.prompt]
    assert list(rows["request"]) == ["How do I open it?", FULL.prompt]


def test_ids_follow_a_picture_that_is_drawn_on():
    """Of the same sample and of the same trial; every condition made of the picture too."""
    sample = Sample("a", "q", picture(size=(40, 30)))
    kept = {condition: Trial(sample, condition) for condition in ("own", "blur", "crop-50", "none")}
    before = {condition: trial.id for condition, trial in kept.items()}
    sample.image.paste(picture(1, (20, 30)), (0, 0))
    for condition, trial in kept.items():
        assert trial.id == Trial(sample, condition).id
        assert (trial.id == before[condition]) == (condition == "none")
    sample.image.paste(picture(size=(40, 30)), (0, 0))
    assert {condition: trial.id for condition, trial in kept.items()} == before


@pytest.mark.parametrize("age", [0, 3600])
def test_ids_follow_a_file_that_is_replaced(tmp_path, age):
    """At once, in the same place, of the same size; and after the clock has moved on."""
    path = tmp_path / "p.bmp"
    trials = [Trial(Sample("a", "q", place), "own") for place in (path, str(path))]
    blank = Trial(Sample("a", "q", path), "blank")
    for seed in (0, 1):
        picture(seed).save(path)
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - age * 10**9))
        wanted = Trial(Sample("b", "q", picture(seed))).id
        assert [trial.id for trial in trials * 2] == [wanted] * 4
    first = blank.id
    picture(0, (12, 20)).save(path)
    assert blank.id != first


def test_a_settled_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    picture().save(path)
    monkeypatch.setattr(trials_module, "SETTLED", -(10**12))
    trial = Trial(Sample("a", "q", path))
    first = trial.id
    monkeypatch.setattr(Sample, "load_image", None)
    assert trial.id == first


def test_a_new_maker_of_pictures_is_asked(monkeypatch):
    trial = Trial(FULL, "blur")
    before = trial.id
    monkeypatch.setitem(IMAGES, "blur", lambda sample: Image.new("RGB", (3, 3)))
    assert trial.id != before


def test_a_meaningless_picture_is_the_callers_own():
    for condition in ("blank", "noise"):
        trial = Trial(FULL, condition)
        before = trial.id
        trial.load_image().paste((1, 2, 3), (0, 0, 9, 9))
        assert trial.id == before
        assert np.array_equal(pixels(condition), pixels(condition, replace(FULL, id="b")))
        assert (pixels(condition)[0, 0] != (1, 2, 3)).any()
