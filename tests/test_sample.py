from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from transformers.image_utils import load_image

from cmrm_utils import InputError, Sample, load_samples
from cmrm_utils.organism.world import VISUAL_KINDS
from cmrm_utils.sample import SHARES, SPLITS, TASKS, answer_letter, identify, split_of
from cmrm_utils.sample import Sample as SampleOfData

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
        ({"kind": "unknown"}, "unknown", False),
        ({"kind": "maker"}, "fact", False),
        ({"kind": "colour"}, "visual", False),
        ({"kind": "visual/own"}, "visual", False),
        ({"kind": " Harmful_Own "}, "harmful", True),
        ({"kind": "BENIGN"}, "benign", False),
        ({"kind": "visual", "choices": ("x", "y")}, "choice", False),
        ({"kind": "benign", "choices": ("x", "y")}, "benign", False),
        ({"choices": ("x", "y")}, "choice", False),
        ({"kind": " "}, "other", False),
        ({}, "other", False),
    ],
)
def test_tasks(fields, task, harmful):
    sample = Sample("a", "q", **fields)
    assert (sample.task, sample.harmful) == (task, harmful)
    assert replace(sample).task == task


def test_the_worlds_kinds_of_question_are_known():
    made = [sample for split in SPLITS for sample in load_samples("organism-extended", split)]
    assert {sample.task for sample in made} <= set(TASKS)
    assert all(Sample("a", "q", kind=kind).task == "visual" for kind in VISUAL_KINDS)


@pytest.mark.parametrize(
    "kind", ["unsafe", "safe", "harm", "harmless", "harmfully", "choices", "x"]
)
def test_other_kinds_are_refused_by_name(kind):
    with pytest.raises(InputError, match=f"sample 'a': kind '{kind}' is not known: .*harmful, ben"):
        Sample("a", "q", kind=kind)


BIG = {chr(ord("A") + i): str(i) for i in range(26)}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["stone", "apple"], ("stone", "apple")),
        ([1, 2], ("1", "2")),
        ({"A": "stone", "B": "apple"}, ("stone", "apple")),
        ({"b": "apple", "a": "stone"}, ("stone", "apple")),
        ({"B": "apple", "C": "plum", "A": "stone"}, ("stone", "apple", "plum")),
        (BIG, tuple(BIG.values())),
    ],
)
def test_choices(given, wanted):
    sample = Sample("a", "q", choices=given)
    assert (sample.choices, sample.answer, sample.task) == (wanted, None, "choice")
    assert f"A. {wanted[0]}\nB. {wanted[1]}" in sample.prompt


@pytest.mark.parametrize(
    "given",
    [
        4,
        "stone",
        {"stone", "apple"},
        True,
        (),
        ["stone"],
        {"A": "stone"},
        ["stone", ""],
        ["stone", " "],
        ["stone", None],
        ["stone", True],
        ["stone", 1.5],
        ["stone", ["apple"]],
        ["stone", "stone"],
        ["stone", "stone "],
        ["stone", "half \ud83d"],
        [str(i) for i in range(27)],
        {"A": "stone", "C": "apple"},
        {"B": "stone", "C": "apple"},
        {"A": "stone", "a": "apple"},
        {"A": "stone", "B": ["apple"]},
        {"1": "stone", "2": "apple"},
        {"stone": "A", "apple": "B"},
    ],
)
def test_other_choices_are_refused(given):
    with pytest.raises(InputError, match="sample 'a': choices "):
        Sample("a", "q", choices=given)


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        *[
            (answer, ("a stone", "an Apple."), "B")
            for answer in ["B", "b", " B", "(B)", "(b)", "B.", "B)", "b:", "B. an apple", "Ｂ", 1]
        ],
        *[(answer, ("a stone", "an Apple."), "B") for answer in ["an Apple.", " AN  apple"]],
        (np.int64(0), ("x", "y"), "A"),
        ("us", ("US", "us"), "B"),
        ("1", ("0", "1"), "B"),
        (1, ("0", "1"), "B"),
        ("2", ("1", "2", "3"), "B"),
        (20, (10, 20), "B"),
        ("O", ("A", "B", "AB", "O"), "D"),
        ("B. A", ("B", "A"), "B"),
        ("z", tuple("zyxwvutsrqponmlkjihgfedcba"[:25]), "A"),
    ],
)
def test_the_answer_to_choices_is_their_letter(answer, choices, letter):
    sample = Sample("a", "q", answer=answer, choices=choices)
    assert sample.answer == letter
    assert replace(sample, id="b").answer == letter


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        *[
            (answer, ("stone", "apple"))
            for answer in ["C", "AB", "", "pear", "1", -1, 2, 1.0, True, ["B"], "(B", "B, A", "app"]
        ],
        ("Us", ("US", "us")),
        ("b", ("b", "a")),
        (1, ("1", "2")),
    ],
)
def test_other_answers_to_choices_are_refused(answer, choices):
    with pytest.raises(
        InputError, match=r"sample 'a': answer (must be one of A, B|.* may mean A or)"
    ):
        Sample("a", "q", answer=answer, choices=choices)


def test_a_sample_takes_the_letter_and_a_reader_asks():
    """So that a copy of a sample has the same answer; a file cannot know what it means."""
    assert Sample("a", "q", answer="A", choices=("B", "A")).answer == "A"
    with pytest.raises(ValueError, match=r"answer 'A' may mean A or B: write .* as in 'A\. B'"):
        answer_letter("A", ("B", "A"))


@pytest.mark.parametrize("field", ["id", "query", "caption", "answer", "kind", "group", "hint"])
@pytest.mark.parametrize(
    "value", [True, 1.5, float("nan"), ["q"], {"q": 1}, b"q", "half \ud83d pair", "a \0 b"]
)
def test_text_fields_take_text(field, value):
    with pytest.raises(InputError, match=rf"sample .*: {field} (must be text|holds)"):
        Sample(**{"id": "a", "query": "q", field: value})


@pytest.mark.parametrize(("field", "value"), [("query", 5), ("kind", 7), ("group", 1), ("hint", 0)])
def test_numbers_are_no_text(field, value):
    with pytest.raises(InputError, match=rf"sample 'a': {field} must be text, not {value}"):
        Sample(**{"id": "a", "query": "q", field: value})


def test_whole_numbers_are_ids_and_answers():
    sample = Sample(np.int64(7), "How many?", answer=3)
    assert (sample.id, sample.answer) == ("7", "3")


@pytest.mark.parametrize("field", ["id", "query"])
@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_sample_needs_an_id_and_a_query(field, value):
    with pytest.raises(InputError, match=f"sample .*: {field} "):
        Sample(**{"id": "a", "query": "q", field: value})


@pytest.mark.parametrize("image", [["p.png"], {"path": "p.png"}, 3, np.zeros((2, 2, 3)), "a\0.png"])
def test_other_images_are_refused(image):
    with pytest.raises(InputError, match="sample 'a': image ") as found:
        Sample("a", "q", image)
    assert len(str(found.value).splitlines()) == 1


def test_only_a_flag_says_that_a_sample_is_of_the_world():
    assert not Sample("a", "q").world
    with pytest.raises(InputError, match="world must be True or False"):
        Sample("a", "q", world="yes")


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


def saved(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def coloured(size=(60, 40)):
    return Image.merge("RGB", [Image.effect_noise(size, 90) for _ in range(3)])


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "mpo"])
def test_photographs_are_upright(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{kind}"
    path.write_bytes(saved(coloured(), kind, exif=exif))
    wanted = load_image(str(path))
    assert wanted.size == ((40, 60) if orientation in range(5, 9) else (60, 40))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        found = Sample("a", "q", source).load_image()
        assert (found.mode, found.size) == ("RGB", wanted.size)
        assert found.tobytes() == wanted.tobytes()
    with Image.open(path) as open_already:
        first, second = (Sample("a", "q", open_already).load_image() for _ in range(2))
        assert first.tobytes() == second.tobytes() == wanted.tobytes()


def test_a_photograph_with_broken_exif_is_upright_all_the_same():
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    whole = saved(coloured(), "jpeg", exif=exif)
    entry = whole.index(b"\x01\x1a\x00\x05")  # the resolution, made to be of another type
    broken = whole[:entry] + b"\x01\x1a\x00\x07" + whole[entry + 4 :]
    with pytest.raises(Exception, match=r"operand|integer|encode"):
        ImageOps.exif_transpose(Image.open(BytesIO(broken)))
    assert Sample("a", "q", broken).load_image().size == (40, 60)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "I;16", "F"]
)
def test_every_mode_becomes_rgb_as_transformers_has_it(mode, tmp_path):
    grey = Image.linear_gradient("L")
    image = (
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        if mode == "I;16"
        else (
            coloured().convert("RGBA").convert(mode)
            if mode == "RGBa"
            else coloured().convert("P").convert(mode)
            if mode == "PA"
            else grey.convert(mode)
            if mode == "F"
            else coloured().convert(mode)
        )
    )
    assert image.mode == mode
    kinds = {"CMYK": "jpeg", "YCbCr": "jpeg", "F": "tiff", "PA": None, "RGBa": None}
    sources = [image]
    if kind := kinds.get(mode, "png"):
        path = tmp_path / f"image.{kind}"
        path.write_bytes(saved(image, kind))
        sources.append(path)
    for source in sources:
        wanted = load_image(str(source) if isinstance(source, Path) else source)
        assert Sample("a", "q", source).load_image().tobytes() == wanted.tobytes()


def test_transparency_is_dropped_and_animations_stand_still():
    clear = Image.new("RGBA", (4, 4), (200, 30, 10, 0))
    assert Sample("a", "q", saved(clear, "png")).load_image().getpixel((0, 0)) == (200, 30, 10)
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (250, 10)]
    for kind in ("gif", "png"):
        moving = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert Sample("a", "q", moving).load_image().getpixel((0, 0)) == (250, 0, 0)


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


def test_what_a_decoder_says_of_a_broken_image_is_told(monkeypatch):
    """Each format has errors of its own: AVIF's are no OSError."""

    def broken(image):
        raise RuntimeError("Failed to decode frame 0")

    picture = saved(coloured(), "png")
    monkeypatch.setattr(PngImageFile, "load", broken)
    with pytest.raises(InputError, match="sample one: no readable image at its bytes"):
        Sample("one", "q", picture).load_image()


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
