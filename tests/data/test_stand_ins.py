import json
import shutil

import pytest

from cmrm_utils import InputError, load_samples
from cmrm_utils.data.sets import SETS
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


@pytest.mark.parametrize("name", ["refusal-direction", "alpaca"])
def test_a_missing_file_is_named_with_the_command_that_gets_it(home, name):
    pattern = FILES[name].file
    next(home.glob(pattern)).unlink()
    with pytest.raises(InputError, match=r"must have one file .* git clone") as error:
        load_samples("requests-beside-scenes", "test")
    assert pattern in str(error.value)


@pytest.mark.parametrize("name", ["vlsafe", "xstest"])
def test_what_the_folder_lacks_comes_from_the_hub(home, name, monkeypatch):
    file = next(home.glob(FILES[name].file))
    file = file.rename(home / f"elsewhere{file.suffix}")
    shutil.rmtree(home / name)
    asked = []

    def from_hub(hub, path, **options):
        asked.append((hub, path))
        return file

    monkeypatch.setattr("huggingface_hub.hf_hub_download", from_hub)
    samples = load_samples("requests-beside-scenes", "test")
    assert asked == [(SETS[name].hub, SETS[name].files[0])]
    assert f"{name}/1" in {sample.id for sample in samples}


def test_twins_that_nobody_publishes_may_be_missing(home):
    (home / "vlsafe" / "safe_twins.jsonl").unlink()
    with pytest.warns(UserWarning, match="vlsafe-twins is left out"):
        samples = load_samples("requests-beside-scenes", "test")
    assert {sample.id.partition("/")[0] for sample in samples} == set(FILES) - {"vlsafe-twins"}


def test_two_files_are_one_too_many(home):
    file = home / "vlsafe" / "examine_2.jsonl"
    file.write_text("{}")
    with pytest.raises(InputError, match=r"must have one file .*examine_2"):
        load_samples("requests-beside-scenes", "test")


def test_a_broken_row_is_named(home):
    (home / "xstest" / "xstest_prompts.csv").write_text("id,prompt,type,label\n1,So?,a,maybe\n")
    with pytest.raises(InputError, match=r"xstest_prompts.csv, row 1: label is 'maybe'"):
        load_samples("requests-beside-scenes", "test")
