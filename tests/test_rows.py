import csv
import shutil

import pytest
from conftest import FIXTURES

from cmrm_utils import InputError
from cmrm_utils.rows import Row, read_rows

PNG = next((FIXTURES / "vlguard" / "test").rglob("*.png"))


def row(folder, **fields):
    return Row(fields, folder / "rows.json", 3)


def test_csv_values_that_look_like_nothing_are_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,id\nNone,1\nNA,2\n")
    rows = read_rows(path, {"prompt": str, "id": int})
    assert [(one["prompt"], one["id"], one.number) for one in rows] == [
        ("None", 1, 1),
        ("NA", 2, 2),
    ]
    with path.open(newline="") as stream:
        assert next(csv.DictReader(stream))["prompt"] == "None"


def test_a_value_that_must_be_one_of_a_few(tmp_path):
    one = row(tmp_path, label="safe")
    assert one.one_of("label", ("safe", "unsafe")) == "safe"
    with pytest.raises(InputError, match=r"rows\.json, row 3: label is 'safe', not one of a, b"):
        one.one_of("label", ("a", "b"))


def test_images_stored_in_a_row(tmp_path):
    content = PNG.read_bytes()
    assert row(tmp_path, image={"bytes": content, "path": None}).stored_image() == content
    assert row(tmp_path, image=None).stored_image() is None
    with pytest.raises(InputError, match="row 3: no readable image"):
        row(tmp_path, image={"bytes": None, "path": "x.png"}).stored_image()


def test_images_in_a_folder_go_before_those_in_its_archive(tmp_path):
    one = row(tmp_path)
    (tmp_path / "test").mkdir()
    shutil.copy(PNG, tmp_path / "test" / "a.png")
    shutil.make_archive(tmp_path / "test", "zip", tmp_path, "test")
    assert one.archived_image("test", "a.png") == tmp_path / "test" / "a.png"
    shutil.rmtree(tmp_path / "test")
    assert one.archived_image("test", "a.png") == PNG.read_bytes()
    with pytest.raises(InputError, match=r"row 3: no readable image test/b\.png in .*test\.zip"):
        one.archived_image("test", "b.png")
    (tmp_path / "test.zip").unlink()
    with pytest.raises(InputError, match=r"row 3: no readable image"):
        one.archived_image("test", "a.png")
