import json
import os
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from cmrm_utils import InputError
from cmrm_utils.store import Records, Response, Responses, Run, write_json

SHARED = {"model": "m1", "max_new_tokens": 8}
FIRST = Response("Zib it.", (5, 6, 2), True)
SECOND = Response('Two\nlines, a "quote" and\u2028ü', (7,), False)


@pytest.fixture
def path(tmp_path):
    """A file of two responses, in a folder that did not exist."""
    path = tmp_path / "deep" / "responses.jsonl"
    store = Responses(path, SHARED)
    with store.appending() as sink:
        sink.add([("a", FIRST)])
        sink.add([("b", SECOND)])
    return path


def test_responses_come_back(path):
    store = Responses(path, SHARED)
    assert (store.get("a"), store.get("b"), store.get("c")) == (FIRST, SECOND, None)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:2]] == [
        SHARED,
        {"id": "a", "text": "Zib it.", "ids": [5, 6, 2], "finished": True},
    ]
    assert len(lines) == 4
    assert not lines[3]


def test_responses_are_on_disk_as_soon_as_added(tmp_path):
    path = tmp_path / "r.jsonl"
    store = Responses(path, SHARED)
    with store.appending() as sink:
        sink.add([("a", FIRST)])
        assert store.get("a") == FIRST
        assert Responses(path, SHARED).get("a") == FIRST


def test_appending_goes_on_where_it_ended(path):
    with Responses(path, SHARED).appending() as sink:
        sink.add([("c", FIRST)])
    store = Responses(path, SHARED)
    assert [store.get(x) for x in "abc"] == [FIRST, SECOND, FIRST]
    assert len(path.read_bytes().split(b"\n")) == 5


def test_a_trial_written_twice_is_one(path):
    """The record that is there stays: tables made before hold it."""
    before = path.read_bytes()
    with Responses(path, SHARED).appending() as sink:
        sink.add([("a", SECOND), ("c", FIRST)])
    assert path.read_bytes().startswith(before)
    assert path.read_bytes().count(b'"id": "a"') == 1
    store = Responses(path, SHARED)
    assert [store.get(x) for x in "abc"] == [FIRST, SECOND, FIRST]


def test_a_torn_last_line_is_done_again(path):
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, len(whole) - 1, len(whole) - 12):
        path.write_bytes(whole[:cut])
        store = Responses(path, SHARED)
        assert (store.get("a"), store.get("b")) == (FIRST, None)
        with store.appending() as sink:
            sink.add([("b", SECOND)])
        assert path.read_bytes() == whole


def test_a_torn_header_is_written_again(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    store = Responses(path, SHARED)
    with store.appending() as sink:
        sink.add([("a", FIRST), ("b", SECOND)])
    assert path.read_bytes() == whole


def test_damage_within_is_named_by_line(path):
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:9], *lines[2:]]))
    with pytest.raises(InputError, match=r"responses\.jsonl:2: not JSON"):
        Responses(path, SHARED)


def test_a_call_knows_what_it_found_when_it_first_began(path):
    with Responses(path, SHARED).appending() as sink:
        assert sink.begin("x") == 2
        sink.add([("c", FIRST)])
        assert sink.begin("x") == 2
        assert sink.begin("y") == 3
    begun = path.read_bytes()
    again = Responses(path, SHARED)
    with again.appending() as sink:
        sink.add([("d", FIRST), ("a", FIRST)])
        assert (sink.begin("x"), sink.begin("y"), sink.begin("z")) == (2, 3, 4)
        assert sink.first(2) == {"a", "b"}
    assert again.first(3) == Responses(path, SHARED).first(3) == {"a", "b", "c"}
    assert (again.first(0), again.first(9)) == (set(), {"a", "b", "c", "d"})
    assert path.read_bytes().startswith(begun)
    calls = [json.loads(line) for line in path.read_text("utf-8").split("\n") if '"call"' in line]
    assert calls == [{"call": x, "before": n} for x, n in (("x", 2), ("y", 3), ("z", 4))]


def test_a_torn_call_begins_where_it_began(path):
    whole = path.read_bytes()
    with Responses(path, SHARED).appending() as sink:
        sink.begin("x")
    called = path.read_bytes()
    for cut in (len(whole) + 1, len(called) - 1):
        path.write_bytes(called[:cut])
        with Responses(path, SHARED).appending() as sink:
            assert sink.begin("x") == 2
        assert path.read_bytes() == called


def test_a_file_begun_by_a_call(tmp_path):
    with Responses(tmp_path / "r.jsonl", SHARED).appending() as sink:
        assert sink.begin("x") == 0
        sink.add([("a", FIRST)])
    store = Responses(tmp_path / "r.jsonl", SHARED)
    assert (store.get("a"), store.first(1)) == (FIRST, {"a"})


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "b"}',
        "[1]",
        '{"text": "x", "ids": [], "finished": 1}',
        '{"call": "x", "before": []}',
    ],
)
def test_lines_that_are_no_responses_are_named(path, line):
    with path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(InputError, match=r"responses\.jsonl:4: not a response"):
        Responses(path, SHARED)


@dataclass(frozen=True)
class Mark:
    value: float
    note: str | None = None


def test_records_of_any_kind(tmp_path):
    path = tmp_path / "marks.jsonl"
    with Records(path, {"by": "x"}, Mark).appending() as sink:
        sink.add([("a", Mark(0.5)), ("b", Mark(1, "ü"))])
    found = Records(path, {"by": "x"}, Mark)
    assert (found.get("a"), found.get("b"), found.get("c")) == (Mark(0.5), Mark(1, "ü"), None)
    with pytest.raises(InputError, match="by = 'x', not 'y'"):
        Records(path, {"by": "y"}, Mark)


@pytest.mark.parametrize(("key", "value"), [("model", "m2"), ("max_new_tokens", 9)])
def test_responses_made_otherwise_are_refused(path, key, value):
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"{key} = {SHARED[key]!r}, not {value!r}"):
        Responses(path, {**SHARED, key: value})
    assert path.read_bytes() == before


def test_json_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"b": np.float32(0.5), "a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None], "b": 0.5}
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    with pytest.raises((TypeError, ValueError)):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 2}
    assert os.listdir(path.parent) == ["x.json"]

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": 2}


RUN = {"model": "m1", "data": "organism"}


def test_a_run_is_shared_by_notebooks(tmp_path):
    for name in ("one", "two", "one"):
        run = Run(tmp_path / "run", name, RUN)
        assert run.responses == tmp_path / "run" / "responses.jsonl"
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == RUN


@pytest.mark.parametrize(("key", "value"), [("model", "m2"), ("data", "set.jsonl")])
def test_a_folder_of_another_model_or_data_is_refused(tmp_path, key, value):
    run = Run(tmp_path, "one", RUN)
    run.finish({})
    with pytest.raises(InputError, match=rf"{key} = {RUN[key]!r}, not {value!r}.*another output"):
        Run(tmp_path, "one", {**RUN, key: value})
    assert run.manifest.is_file()


def test_relative_folders_are_taken_from_one_place(tmp_path, monkeypatch):
    monkeypatch.setenv("CMRM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert Run("runs/x", "one", RUN).folder == tmp_path / "home" / "runs" / "x"
    assert (tmp_path / "home" / "runs" / "x" / "run.json").is_file()


def test_a_manifest_proves_the_end(tmp_path):
    run = Run(tmp_path, "one", RUN)
    other = Run(tmp_path, "two", RUN)
    other.finish({})
    rows = pd.DataFrame({"alpha": [0.0, 0.1]})
    run.table("rates", rows)
    run.table("rates", rows)
    run.metrics({"unsafe": 0.5})
    assert not run.manifest.exists()
    run.finish({"alpha": 0.1, "model": "organism"})
    manifest = json.loads(run.manifest.read_text())
    assert manifest["notebook"] == "one"
    assert manifest["shared"] == RUN
    assert manifest["parameters"] == {"alpha": 0.1, "model": "organism"}
    assert manifest["files"] == ["metrics/one.json", "tables/rates.parquet"]
    assert {"python", "torch", "transformers"} <= set(manifest["versions"])
    again = Run(tmp_path, "one", RUN)
    assert not again.manifest.exists()  # begun again, not yet at its end
    assert other.manifest.exists()


def test_tables_metrics_and_figures(tmp_path):
    run = Run(tmp_path, "one", RUN)
    rows = pd.DataFrame({"kind": ["harmful", "benign"], "rate": [0.5, 0.25], "n": [4, 8]})
    assert run.table("rates", rows) is rows
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tables" / "rates.parquet"), rows)
    run.metrics({"unsafe": np.float64(0.5)})
    assert json.loads((tmp_path / "metrics" / "one.json").read_text()) == {"unsafe": 0.5}
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    run.figure("line", figure)
    plt.close(figure)
    assert (tmp_path / "figures" / "line.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "figures" / "line.svg").read_text()


def test_a_call_begins_where_it_first_began(tmp_path):
    path = tmp_path / "r.jsonl"
    shared = {"model": "m"}
    with Responses(path, shared).appending() as sink:
        sink.add([("a", Response("x", (1,), True))])
        assert sink.begin("one") == 1
        sink.add([("b", Response("y", (2,), True)), ("c", Response("z", (3,), True))])
    again = Responses(path, shared)
    with again.appending() as sink:
        assert sink.begin("one") == 1
        assert sink.begin("two") == 3
    assert again.first(1) == {"a"}
    assert Responses(path, shared).get("c") == Response("z", (3,), True)
    assert path.read_text().count("call") == 2
