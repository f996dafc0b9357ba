import csv
import json
from collections import Counter

import pytest
from conftest import FIXTURES
from PIL import Image

from cmrm_utils import InputError, Sample, load_samples
from cmrm_utils.data.load import located, parts, take
from cmrm_utils.data.named import DATASETS
from cmrm_utils.organism import world
from cmrm_utils.sample import SHARES, SPLITS


@pytest.fixture(scope="module")
def organism():
    return load_samples("organism")


def rows_file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_organism_has_three_splits(organism):
    assert tuple(organism) == SPLITS == ("anchors", "validation", "test")
    assert [s.id for s in load_samples("organism", "test")] == [s.id for s in organism["test"]]


@pytest.mark.parametrize("split", SPLITS)
def test_organism_sizes(organism, split):
    n_requests, n_visual = world.SIZES[split]
    kinds = Counter(sample.kind for sample in organism[split])
    for kind in world.KINDS:
        wanted = 0 if kind == "harmful-unseen" and split != "test" else n_requests
        assert kinds[kind] == wanted
    tasks = Counter(sample.task for sample in organism[split])
    assert tasks["visual"] == n_visual
    assert tasks["fact"] == 2 * len(world.OBJECTS)
    visual = [kinds[kind] for kind in world.VISUAL_KINDS]
    assert max(visual) - min(visual) <= 1


def test_ids_are_unique_over_splits(organism):
    ids = [sample.id for samples in organism.values() for sample in samples]
    assert len(ids) == len(set(ids))


def test_splits_share_no_picture_and_no_pair(organism):
    pictures, pairs, captions = [], [], []
    for samples in organism.values():
        pictures.append({s.load_image().tobytes() for s in samples if s.image is not None})
        captions.append({s.caption for s in samples if s.caption is not None})
        asked = [world.find_request(s.query) for s in samples if s.task in ("harmful", "benign")]
        pairs.append({(request.verb, request.object) for request in asked})
    for sets in (pictures, pairs, captions):
        assert all(sets)
        assert sum(map(len, sets)) == len(set.union(*sets))


def test_requests_know_their_verb_and_a_good_answer(organism):
    for sample in organism["validation"]:
        request = world.find_request(sample.query)
        if sample.task not in ("harmful", "benign"):
            assert request is None
            continue
        assert (sample.kind, sample.group) == (request.kind, request.verb)
        assert sample.harmful == request.harmful
        assert sample.answer == (None if request.harmful else request.steps)


def test_the_caption_tells_the_picture(organism):
    """Visual answers can be read off the caption that stands in for the image."""
    for sample in organism["validation"]:
        assert (sample.caption is None) == (sample.image is None)
        if sample.kind == "description":
            assert sample.answer == sample.caption
        elif sample.task == "visual":
            assert sample.answer.split(" is ")[1].rstrip(".") in sample.caption


def test_take():
    kinds = ["benign", "benign-hard", "colour", "shape", "benign", "benign-hard", "colour"]
    samples = [Sample(str(i), "q", kind=kind) for i, kind in enumerate(kinds)]
    assert [s.id for s in take(samples, 1, "visual", "benign")] == ["2", "0", "1"]
    assert [s.id for s in take(samples, None, "benign")] == ["0", "4", "1", "5"]
    with pytest.raises(InputError, match="'harmful'"):
        take(samples, 1, "benign", "harmful")


def test_jsonl(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "pictures" / "p.png")
    path = rows_file(
        tmp_path / "set.jsonl",
        {"id": 7, "query": "Was ist daß?", "image": "pictures/p.png", "caption": "c", "group": "g"},
        {"id": "b", "query": "Which?", "choices": ["x", 2], "answer": "B", "kind": "choice"},
        {"id": "c", "query": "q", "image": None, "answer": ""},
    )
    first, second, third = load_samples(path)
    assert (first.id, first.query, first.caption, first.group) == ("7", "Was ist daß?", "c", "g")
    assert first.load_image().getpixel((0, 0)) == (1, 2, 3)
    assert (second.choices, second.answer, second.kind) == (("x", "2"), "B", "choice")
    assert (third.image, third.answer, third.choices) == (None, None, None)
    assert [s.id for s in load_samples(str(path))] == ["7", "b", "c"]


def test_csv(tmp_path):
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "p.png")
    path = tmp_path / "set.csv"
    path.write_text(
        "id,query,image,answer,choices,kind\n"
        '1,"How, then?",p.png,,,harmful\n'
        '2,Which?,,B,"[""x"", ""y, z""]",\n'
    )
    first, second = load_samples(path)
    assert (first.id, first.query, first.answer, first.kind) == ("1", "How, then?", None, "harmful")
    assert first.load_image().size == (3, 2)
    assert (second.image, second.answer, second.choices) == (None, "B", ("x", "y, z"))


GOOD = '{"id": "a", "query": "q"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + '{"id": "b", "que', r"set\.jsonl:2: not a readable row"),
        (GOOD + '["b", "q"]\n', r"set\.jsonl:2: not a readable row"),
        (GOOD + '{"id": "b"}\n', r"set\.jsonl:2: no query"),
        (GOOD + '{"id": "b", "query": ""}\n', r"set\.jsonl:2: no query"),
        (GOOD + '{"caption": "c"}\n', r"set\.jsonl:2: no id and no query"),
        (GOOD + '{"id": "b", "query": "q", "imag": "x"}\n', r"set\.jsonl:2: unknown field 'imag'"),
        (GOOD * 2, r"set\.jsonl:2: duplicate id 'a'"),
        (GOOD + '\n{"id": "b", "query": " "}\n', r"set\.jsonl:3: no query"),
        ('{"id": "", "query": "q"}', r"set\.jsonl:1: no id"),
        (GOOD + '{"id": "b", "query": "q", "world": true}\n', r":2: unknown field 'world'"),
        (GOOD + '{"id": "b", "query": "q", "kind": "Safe"}\n', r":2: kind 'safe' is not known"),
        (
            GOOD + '{"id": "b", "query": "q", "kind": "choice"}\n',
            r":2: kind is 'choice', but there",
        ),
        ("", r"set\.jsonl: no samples"),
        ("\n\n", r"set\.jsonl: no samples"),
    ],
)
def test_broken_jsonl_is_named_by_line(tmp_path, text, message):
    path = tmp_path / "set.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_samples(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,query\na,q\nb,\n", r"set\.csv:3: no query"),
        ("id,query,imag\na,q,x\n", r"set\.csv:2: unknown field 'imag'"),
        ("id,query\na,q\na,r\n", r"set\.csv:3: duplicate id 'a'"),
        ("id,query,choices\na,q,x|y\n", r"set\.csv:2: choices must be a JSON list"),
        ("id,query,choices\na,q,\"['x', 'y']\"\n", r"set\.csv:2: choices must be a JSON list"),
        ('id,query,kind\n\na,"q\nr",\nb,q,unsafe\n', r"set\.csv:5: kind 'unsafe' is not known"),
        ("id,query,world\na,q,true\n", r"set\.csv:2: unknown field 'world'"),
        ('id,query\na,"Why?\nb,How?\nc,Which?\n', r"set\.csv:2: a quote opens .* never closes"),
        ("id,query\n", r"set\.csv: no samples"),
        ("", r"set\.csv: no samples"),
    ],
)
def test_broken_csv_is_named_by_line(tmp_path, text, message):
    path = tmp_path / "set.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_samples(path)


FIELDS_OF_TEXT = ("query", "caption", "answer", "kind", "group", "hint", "request", "id", "image")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, value) for name in FIELDS_OF_TEXT for value in (True, 1.5, ["q"], {"path": "q"})],
        *[(name, 7) for name in FIELDS_OF_TEXT if name not in ("id", "answer")],
        *[(name, "half \ud83d pair") for name in FIELDS_OF_TEXT],
        *[(name, "a \0 b") for name in FIELDS_OF_TEXT],
        *[
            ("choices", value)
            for value in (4, True, ["x"], ["x", "x"], {"A": "x", "C": "y"}, ["", "x"])
        ],
        ("choices", ["x", "half \ud83d pair"]),
    ],
)
def test_fields_of_another_type_are_named(tmp_path, field, value):
    path = rows_file(tmp_path / "set.jsonl", {"id": 1, "query": "q", field: value})
    with pytest.raises(InputError, match=rf"set\.jsonl:1: {field} ") as found:
        load_samples(path)
    assert len(str(found.value).splitlines()) == 1
    str(found.value).encode()


def test_nothing_in_a_file_is_of_the_world(organism, tmp_path):
    """Only the organism's own samples may be judged exactly."""
    asked = organism["test"][0]
    path = rows_file(tmp_path / "set.jsonl", {"id": 1, "query": asked.query, "kind": asked.kind})
    assert not load_samples(path)[0].world
    for name in ("organism", "organism-extended"):
        assert all(s.world for samples in load_samples(name).values() for s in samples)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), ("b", "B"), (" B", "B"), ("(B)", "B"), ("B.", "B"), ("Apple.", "B"), (1, "B"),
     ("", None), (None, None), ("C", "refused"), ("1", "refused"), (2, "refused")],
)  # fmt: skip
def test_answers_to_choices(tmp_path, suffix, answer, letter):
    """A number counts from 0, as in ScienceQA; CSV has none, and a text of digits is refused."""
    row = {"id": "q", "query": "Which is a fruit?", "choices": ["stone", "apple"], "answer": answer}
    path = rows_file(tmp_path / "set.jsonl", row)
    if suffix == ".csv":
        path = tmp_path / "set.csv"
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, row)
            writer.writeheader()
            writer.writerow({**row, "choices": json.dumps(row["choices"])})
        letter = "refused" if answer == 1 else letter
    if letter == "refused":
        with pytest.raises(InputError, match=r"set\.\w+:[12]: answer must be one of A, B, or"):
            load_samples(path)
    else:
        assert load_samples(path)[0].answer == letter


def test_an_answer_that_may_mean_two_options_is_refused(tmp_path):
    row = {"id": "q", "query": "Which letter is a vowel?", "choices": ["B", "A"]}
    path = tmp_path / "set.jsonl"
    with pytest.raises(InputError, match=r"set\.jsonl:1: answer 'A' may mean A or B"):
        load_samples(rows_file(path, {**row, "answer": "A"}))
    assert load_samples(rows_file(path, {**row, "answer": "B. A"}))[0].answer == "B"


def test_choices_by_letter(tmp_path):
    options = {"b": "apple", "A": "stone"}
    path = rows_file(tmp_path / "set.jsonl", {"id": 1, "query": "q", "choices": options})
    assert load_samples(path)[0].choices == ("stone", "apple")
    table = tmp_path / "set.csv"
    table.write_text('id,query,choices,answer\n1,q,"{""A"": ""stone"", ""B"": ""apple""}",apple\n')
    sample = load_samples(table)[0]
    assert (sample.choices, sample.answer) == (("stone", "apple"), "B")


def test_what_has_no_kind_is_asked_by_no_notebook(tmp_path):
    rows = [{"id": i, "query": "q", "answer": "a"} for i in range(3)]
    samples = load_samples(
        rows_file(tmp_path / "set.jsonl", *rows, {**rows[0], "id": "x", "kind": "fact"})
    )
    assert Counter(s.task for s in samples) == {"other": 3, "fact": 1}
    with pytest.raises(InputError, match=r"'harmful'; 3 of its 4 samples have no kind \(harmful, "):
        take(samples, None, "harmful")


def test_taking_two_samples_of_one_id_is_refused(organism):
    twice = [*organism["anchors"], organism["anchors"][0]]
    with pytest.raises(InputError, match=f"two samples have the id '{twice[0].id}'"):
        take(twice, None, "harmful")


def test_names_of_files(tmp_path):
    upper = rows_file(tmp_path / "SET.JSONL", {"id": 1, "query": "q"})
    assert [s.id for s in load_samples(upper)] == ["1"]
    with pytest.raises(InputError, match=f"{tmp_path}: a folder, not a .jsonl or .csv file"):
        load_samples(tmp_path)
    with pytest.raises(InputError, match="no data set or file 'xxx"):
        load_samples("x" * 5000)


def test_bad_names(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl.*organism"):
        load_samples(tmp_path / "nowhere.jsonl")
    other = tmp_path / "set.txt"
    other.write_text(GOOD)
    with pytest.raises(InputError, match=r"set\.txt: expected a \.jsonl or \.csv"):
        load_samples(other)
    with pytest.raises(InputError, match="no split 'train'"):
        load_samples("organism", "train")


def test_a_files_rows_fall_into_splits_for_good(tmp_path):
    rows = [{"id": f"row {i}", "query": "q"} for i in range(400)]
    path = rows_file(tmp_path / "set.jsonl", *rows[:300])
    splits = {name: {s.id for s in load_samples(path, name)} for name in SPLITS}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 300
    for name, share in SHARES.items():
        assert len(splits[name]) == pytest.approx(300 * share, abs=25)
    rows_file(path, *rows)
    for name, ids in splits.items():
        assert ids <= {s.id for s in load_samples(path, name)}
    with pytest.raises(InputError, match="no split 'train'"):
        load_samples(path, "train")
    one = rows_file(tmp_path / "one.jsonl", rows[0])
    empty = [name for name in SPLITS if rows[0]["id"] not in splits[name]]
    for name in empty:
        with pytest.raises(InputError, match=f"none of its samples falls into the {name} split"):
            load_samples(one, name)


# ---- named sets and unions


@pytest.fixture
def fixtures(monkeypatch):
    monkeypatch.setenv("CMRM_DATA", str(FIXTURES))


def test_a_public_set_has_three_splits(fixtures):
    splits = load_samples("vlsafe")
    assert tuple(splits) == SPLITS
    assert [len(samples) for samples in splits.values()] == [4, 4, 4]
    assert [s.id for s in load_samples("vlsafe", "test")] == [s.id for s in splits["test"]]


def test_data_dir_comes_before_the_environment(fixtures, home, tmp_path):
    (home / "vlsafe" / "VLSafe" / "harmlessness_examine.jsonl").write_text("")
    with pytest.raises(InputError, match=f"{home}.*empty"):
        load_samples("vlsafe", data_dir=home)
    assert load_samples("vlsafe", "anchors")


def test_a_union_of_sets_and_files(fixtures, tmp_path):
    mine = rows_file(tmp_path / "my.jsonl", *({"id": i, "query": "q"} for i in range(20)))
    union = load_samples(f"vlsafe+{mine}+organism")
    for split in SPLITS:
        single = [
            *load_samples("vlsafe", split),
            *load_samples(mine, split),
            *load_samples("organism", split),
        ]
        assert [s.id for s in union[split]] == [s.id for s in single]
        assert [s.id for s in load_samples(f"vlsafe+{mine}+organism", split)] == [
            s.id for s in single
        ]


def test_a_part_may_be_wholly_of_one_split(fixtures):
    """The paper's anchors: a share of the safety sets, and all of LLaVA-Bench-COCO."""
    union = load_samples("vlsafe+llava-bench-coco@anchors")
    assert Counter(s.task for s in union["anchors"]) == {"harmful": 4, "open": 12}
    assert {s.task for s in union["validation"] + union["test"]} == {"harmful"}
    assert len(load_samples("scienceqa@test", "test")) == 12
    assert load_samples("scienceqa@test")["validation"] == []
    with pytest.raises(InputError, match=r"scienceqa@test: none .* anchors split"):
        load_samples("scienceqa@test", "anchors")
    sizes = [len(samples) for samples in load_samples("organism@test").values()]
    assert sizes == [0, 0, sum(map(len, load_samples("organism").values()))]


def test_an_id_may_not_come_from_two_parts(fixtures):
    with pytest.raises(InputError, match=r"vlsafe\+vlsafe: two parts of it have the id 'vlsafe/"):
        load_samples("vlsafe+vlsafe", "test")
    with pytest.raises(InputError, match="two parts"):
        load_samples("vlsafe@anchors+vlsafe")


def test_a_union_with_an_unknown_part(fixtures):
    for name in ("vlsafe+nothing", "nothing@anchors", "vlsafe@anchor"):
        with pytest.raises(InputError, match=r"no data set or file '(nothing|vlsafe@anchor)'"):
            load_samples(name)


def test_located_makes_files_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path / "my.jsonl", {"id": 1, "query": "q"})
    rows_file(tmp_path / "a+b@test.jsonl", {"id": 1, "query": "q"})
    assert located("vlsafe+my.jsonl@test") == f"vlsafe+{tmp_path}/my.jsonl@test"
    assert located("a+b@test.jsonl") == f"{tmp_path}/a+b@test.jsonl"
    assert located("organism") == "organism"
    with pytest.raises(InputError, match=r"your\.jsonl.*" + ", ".join(DATASETS)):
        located("vlsafe+your.jsonl")


def test_a_file_may_have_hints(tmp_path):
    row = {"id": 1, "query": "Which?", "choices": ["x", "y"], "hint": "y it is"}
    sample = load_samples(rows_file(tmp_path / "my.jsonl", row))[0]
    assert sample.prompt.startswith("Context: y it is\nWhich?\nA. x\n")


@pytest.mark.parametrize("n", [0, -3])
def test_taking_no_samples_is_refused(organism, n):
    with pytest.raises(InputError, match=f"at least 1, not {n}"):
        take(organism["anchors"], n, "harmful")


def test_a_revision_stands_before_the_split(monkeypatch):
    monkeypatch.setenv("CMRM_DATA", str(FIXTURES))
    name = f"vlsafe@{'0' * 40}@anchors"
    assert parts(name) == [(f"vlsafe@{'0' * 40}", "anchors")]
    assert located(name) == name
    assert len(load_samples(name, "anchors")) == 12
    with pytest.raises(InputError, match="vlsafe@main"):
        load_samples("vlsafe@main")
