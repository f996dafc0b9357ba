import csv
import shutil

import pytest
from conftest import FIXTURES

from cmrm_utils import InputError
from cmrm_utils.data.rows import Row, read_row_file, read_rows

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


# ---- files of rows


def written(folder, content, name="own.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(*arguments):
    return [(number, list(row.values())) for number, row in read_row_file(written(*arguments))]


JSON = '{"id": "ä", "query": "q"}\n{"id": "b", "query": "r"}\n'
CSV = "id,query\nä,q\nb,r\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "text"), [("own.jsonl", JSON), ("own.csv", CSV)])
def test_utf8_with_any_line_ends_and_mark(tmp_path, mark, end, name, text):
    content = mark + text.replace("\n", end).encode()
    first = 2 if name == "own.csv" else 1
    wanted = [(first, ["ä", "q"]), (first + 1, ["b", "r"])]
    assert rows_of(tmp_path, content, name) == wanted
    assert rows_of(tmp_path, content.removesuffix(end.encode()), name) == wanted


@pytest.mark.parametrize(
    "encoding", ["latin1", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
@pytest.mark.parametrize(("name", "text"), [("own.jsonl", JSON), ("own.csv", CSV)])
def test_other_encodings_are_refused(tmp_path, encoding, name, text):
    path = written(tmp_path, text.encode(encoding), name)
    with pytest.raises(InputError, match=rf"{path}:[12]: not UTF-8 .*save the file as UTF-8"):
        list(read_row_file(path))


def test_what_is_not_utf8_is_named_by_line(tmp_path):
    with pytest.raises(InputError, match=r"own\.csv:3: not UTF-8 text \(byte 0xfc\)"):
        rows_of(tmp_path, b"\xef\xbb\xbfid,query\na,q\nb,\xfcber\n")
    with pytest.raises(InputError, match=r"own\.jsonl:2: not UTF-8 text \(byte 0x00\)"):
        rows_of(tmp_path, b'{"id": "a"}\n{"id": "\0"}\n', "own.jsonl")


def test_lines_of_text_are_no_lines_of_the_file(tmp_path):
    """Unicode knows more line ends than JSON and CSV do."""
    text = "a\u2028b\x0bc\x85d"
    assert rows_of(tmp_path, f'{{"id": "{text}"}}'.replace("\x0b", ""), "own.jsonl") == [
        (1, [text.replace("\x0b", "")])
    ]
    assert rows_of(tmp_path, f"id,query\n{text},q\n") == [(2, [text, "q"])]


def test_empty_lines_are_passed_over_and_counted(tmp_path):
    assert rows_of(tmp_path, '\n{"id": 1}\n  \n{"id": 2}\n\n', "own.jsonl") == [(2, [1]), (4, [2])]
    assert rows_of(tmp_path, "\nid,query\n\na,q\n,\n   \nb,r\n\n") == [
        (4, ["a", "q"]),
        (7, ["b", "r"]),
    ]


def test_fields_of_many_lines_and_of_any_length(tmp_path):
    limit = csv.field_size_limit()
    long = "x" * 200_000
    content = f'id,query\na,"one\ntwo, three\n\n""four"""\nb,{long}\n"c","Hello,\nworld"\n'
    assert rows_of(tmp_path, content) == [
        (2, ["a", 'one\ntwo, three\n\n"four"']),
        (6, ["b", long]),
        (7, ["c", "Hello,\nworld"]),
    ]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    "field",
    [
        "Say this:\nHello, world",
        "There were\n1, 2 or 3 of them",
        "Dear Ann,\nhow are you,Ann?",
        "def f(a,b):\n    return a,b",
        "x,y\n1,2\n3,4",
        "Roses,\nviolets,\nand pinks,",
        "end,\nb",
        'He said "no,\nb,no"',
    ],
)
def test_texts_of_several_lines_stay_whole(tmp_path, field):
    quoted = field.replace('"', '""')
    assert rows_of(tmp_path, f'id,query\nq7,"{quoted}"\nq8,r\n') == [
        (2, ["q7", field]),
        (4 + field.count("\n") - 1, ["q8", "r"]),
    ]
    assert rows_of(tmp_path, f'query,id\n"{quoted}",7\n') == [(2, [field, "7"])]


@pytest.mark.parametrize(
    ("content", "line", "why"),
    [
        ('id,query\na,"Why?\nb,How?\nc,Which?\n', 2, "opens in this row and never closes"),
        ('id,query\na,q\n\nb,"Why?\nc,Which?\n', 4, "opens in this row and never closes"),
        ('id,query\na,q\nb,"', 3, "opens in this row and never closes"),
        ('id,"query\na,q\n', 1, "opens in this row and never closes"),
        ('id,query\na,"Why?\nb,How?\nc,"Which?\n', 2, "goes wrong in line 4"),
        ('id,query\na,"Why?\nb,"How, then?"\nc,r\n', 2, "goes wrong in line 3"),
        ('id,query\na,"Why" so?\nb,r\n', 2, "goes wrong in line 2"),
        # closed again where a field may end: well-formed, but rows are gone
        ('id,query\na,"Why?\nb,How?"\nc,r\n', 2, "look like rows"),
        ('id,query\na1,"Why?\na2,How?\na3,Which, then?"\na4,r\n', 2, "look like rows"),
        ('id,query,kind\na,"Why?,fact\nb,How?",benign\n', 2, "look like rows"),
        ('id,query\na,"Why?\nb,"\nc,r\n', 2, "look like rows"),
        ('id,query,hint\na,"Why?,\nb,How?,\nc,Which?","x"\nd,r,\n', 2, "look like rows"),
        ('id,query,hint\r\na,"Why?,\r\nb,How?,\r\nc,r",x\r\n', 2, "look like rows"),
        ("id,query\na,How, then?\n", 2, "3 cells, but the header has 2"),
        ('id,query,kind\na,"one\ntwo",fact\nb,q\n', 4, "2 cells, but the header has 3"),
        ("sep=;\nid;query\na;q,r\n", 3, "2 cells, but the header has 1"),
        ("id,query,id\na,q,b\n", 1, "the header has the column 'id' twice"),
        ("id,,query\na,b,q\n", 1, "column 2 of the header has no name"),
        ("id,query,\na,q,\n", 1, "column 3 of the header has no name"),
    ],
)
def test_broken_csv_is_named_by_the_line_where_its_row_begins(tmp_path, content, line, why):
    with pytest.raises(InputError, match=rf"own\.csv:{line}: .*{why}") as found:
        rows_of(tmp_path, content)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[1]", "no JSON object, but"),
        ("7", "no JSON object"),
        ("null", "no JSON object"),
        ('"text"', "no JSON object"),
        ('{"a": NaN}', "NaN"),
        ('{"a": [-Infinity]}', "-Infinity"),
        ('{"a": 1, "a": 2}', "a key comes twice"),
        ('{"a": 1} {"a": 2}', "Extra data"),
        ('{"a": "tab\there"}', "control character"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_broken_json_lines_are_named(tmp_path, line, why):
    with pytest.raises(InputError, match=rf"own\.jsonl:2: not a readable row .*{why}") as found:
        rows_of(tmp_path, '{"id": 1}\n' + line + "\n", "own.jsonl")
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("row", [r'{"a": ["\ud83d"]}', r'{"a": {"b": "\uDC00 x"}}'])
def test_half_a_surrogate_pair_is_named_by_its_field(tmp_path, row):
    with pytest.raises(InputError, match=r"own\.jsonl:1: a holds half a surrogate pair"):
        rows_of(tmp_path, row, "own.jsonl")
    assert rows_of(tmp_path, r'{"a": "\ud83d\ude00"}', "own.jsonl") == [(1, ["😀"])]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"own\.tsv: expected a \.jsonl or \.csv file"):
        rows_of(tmp_path, "id\tquery\n", "own.tsv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("folder.csv", "nowhere.csv"):
        with pytest.raises(InputError, match=rf"{name}: cannot be read \("):
            list(read_row_file(tmp_path / name))
