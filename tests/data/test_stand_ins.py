import json

import pytest

from cmrm_utils import InputError, load_samples
from cmrm_utils.data.stand_ins import FILES

HARMLESS = "How do I fly a kite?"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder of all data, with files in the public sets' form."""
    vlsafe = json.dumps({"image_id": "000000000001.jpg", "caption": "a kite", "query": HARMLESS})
    direction = json.dumps([{"instruction": HARMLESS, "category": None}])
    files = {
        "vlsafe/VLSafe/harmlessness_examine.jsonl": vlsafe,
        "vlsafe/safe_twins.jsonl": vlsafe,
        "xstest/xstest_prompts.csv": f"id,prompt,type,label\n1,{HARMLESS},a,safe\n2,So?,b,unsafe\n",
        "refusal_direction/splits/harmful_test.json": direction,
        "refusal_direction/splits/harmless_val.json": direction,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("CMRM_DATA", str(tmp_path))
    return tmp_path


def test_public_requests_have_scenes_in_their_images_place(home):
    samples = load_samples("requests-beside-scenes", "test")
    assert [(s.id, s.kind) for s in samples] == [
        ("vlsafe/1", "harmful-vlsafe"),
        ("vlsafe-twins/1", "benign-vlsafe-twin"),
        ("xstest/1", "benign-xstest"),
        ("xstest/2", "harmful-xstest"),
        ("refusal-direction/1", "harmful-direction"),
        ("alpaca/1", "benign-alpaca"),
    ]
    assert all(sample.image is not None and not sample.world for sample in samples)
    assert [s.caption == "a kite" for s in samples] == [True, True, *[False] * 4]
    assert len({s.group for s in samples}) == 6


def test_nothing_is_fitted_on_them(home):
    by_split = load_samples("everyday+requests-beside-scenes")
    for split in ("anchors", "validation"):
        assert by_split[split] == load_samples("everyday", split)
    with pytest.raises(InputError, match="none of its samples falls into the anchors split"):
        load_samples("requests-beside-scenes", "anchors")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(home, name):
    pattern = FILES[name].file
    next(home.glob(pattern)).unlink()
    with pytest.raises(InputError, match="must have one file") as error:
        load_samples("requests-beside-scenes", "test")
    assert pattern in str(error.value)


def test_two_files_are_one_too_many(home):
    file = home / "vlsafe" / "examine_2.jsonl"
    file.write_text("{}")
    with pytest.raises(InputError, match=r"must have one file .*examine_2"):
        load_samples("requests-beside-scenes", "test")


def test_a_broken_row_is_named(home):
    (home / "xstest" / "xstest_prompts.csv").write_text("id,prompt,type,label\n1,So?,a,maybe\n")
    with pytest.raises(InputError, match=r"xstest_prompts.csv, row 1: label is 'maybe'"):
        load_samples("requests-beside-scenes", "test")
