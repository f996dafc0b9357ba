import errno
import json
import os
import pathlib
import subprocess
import sys
import warnings
from dataclasses import dataclass
from hashlib import sha256
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from cmrm_utils import InputError, store
from cmrm_utils.jobs.shards import read_header
from cmrm_utils.store import Records, Response, Responses, locked, write_json
from cmrm_utils.studies import folder
from cmrm_utils.studies.folder import Run

SHARED = {"model": "m1", "max_new_tokens": 8}
FIRST = Response("Zib it.", (5, 6, 2), True)
SECOND = Response('Two\nlines, a "quote" and\u2028ü', (7,), False)


@pytest.fixture
def path(tmp_path):
    """A file of two responses, in a folder that did not exist."""
    path = tmp_path / "deep" / "responses.jsonl"
    kept = Responses(path, SHARED)
    with kept.appending() as sink:
        sink.add([("a", FIRST)])
        sink.add([("b", SECOND)])
    return path


def test_responses_come_back(path):
    kept = Responses(path, SHARED)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (FIRST, SECOND, None)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:2]] == [
        SHARED,
        {"id": "a", "text": "Zib it.", "ids": [5, 6, 2], "finished": True},
    ]
    assert len(lines) == 4
    assert not lines[3]


def test_responses_are_on_disk_as_soon_as_added(tmp_path):
    path = tmp_path / "r.jsonl"
    kept = Responses(path, SHARED)
    with kept.appending() as sink:
        sink.add([("a", FIRST)])
        assert kept.get("a") == FIRST
        assert Responses(path, SHARED).get("a") == FIRST


def test_a_half_line_of_another_process_is_left_to_it(path):
    """Only who holds the lock may cut a torn line off: else its writer has it cut in mid-write."""
    with path.open("ab") as other:
        other.write(b'{"id": "c", "te')
    torn = path.read_bytes()
    kept = Responses(path, SHARED)
    assert path.read_bytes() == torn
    with path.open("ab") as other:
        other.write(b'xt": "x", "ids": [], "finished": true}\n')
    with kept.appending() as sink:
        assert sink.get("c") == Response("x", (), True)
        assert len(sink.begin("x")) == 3


def test_appending_takes_in_what_others_wrote(path):
    one, two = Responses(path, SHARED), Responses(path, SHARED)
    with one.appending() as sink:
        sink.begin("x")
        sink.add([("c", FIRST)])
    with two.appending() as sink:
        assert sink.get("c") == FIRST
        assert len(sink.begin("x")) == 2
    path.unlink()
    with two.appending() as sink:
        assert sink.get("a") is None
        sink.add([("a", SECOND)])
    assert Responses(path, SHARED).get("a") == SECOND


def elsewhere(code, *arguments):
    """A process without torch that holds the store, runs the code, and waits for a line."""
    start = "import sys; from pathlib import Path; from cmrm_utils.store import *\n"
    end = "\nprint('ready', flush=True); sys.stdin.readline()"
    return subprocess.Popen(
        [sys.executable, "-c", start + code + end, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
held = Responses(Path(sys.argv[1]), {"model": "m1", "max_new_tokens": 8}).appending()
sink = held.__enter__()
sink.add([("c", Response("c", (1,), True))])
"""


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(path):
    other = elsewhere(HOLD, path)
    try:
        assert other.stdout.readline() == "ready\n"
        kept = Responses(path, SHARED)  # reading is free
        assert kept.get("c") == Response("c", (1,), True)
        before = path.read_bytes()
        pattern = rf"responses\.jsonl is being written by process {other.pid} on .*: wait"
        with pytest.raises(InputError, match=pattern), kept.appending():
            pass
        assert path.read_bytes() == before
        other.kill()
        other.wait()
        with kept.appending() as sink:
            sink.add([("d", FIRST)])
    finally:
        other.kill()
        other.communicate()
    assert set(Responses(path, SHARED).all) == {"a", "b", "c", "d"}


def test_a_lock_is_let_go_at_the_end(path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(path):
            raise KeyError
    with locked(path), pytest.raises(InputError, match=f"process {os.getpid()} "), locked(path):
        pass


def test_a_file_system_without_locks_warns(path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(store.fcntl, "flock", none)
    kept = Responses(path, SHARED)
    with pytest.warns(UserWarning, match="cannot be locked"), kept.appending() as sink:
        sink.add([("c", FIRST)])
    assert Responses(path, SHARED).get("c") == FIRST


class Full:
    """A file on a disk with room for so many bytes."""

    def __init__(self, stream, room):
        self._stream, self._room = stream, room

    def write(self, data):
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = self._stream.write(data[: self._room])
        self._room -= done
        return done

    def __getattr__(self, name):
        return getattr(self._stream, name)


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_leaves_whole_lines(path, room):
    before = path.read_bytes()
    kept = Responses(path, SHARED)
    with kept.appending() as sink:
        sink._stream = Full(sink._stream, room)
        with pytest.raises(
            InputError, match=r"responses\.jsonl: cannot be written \(No space left"
        ):
            sink.add([("c", FIRST), ("d", FIRST)])
        assert path.read_bytes() == before
        assert sink.get("c") is None
    with kept.appending() as sink:  # room again
        sink.add([("c", FIRST), ("d", FIRST)])
    assert set(Responses(path, SHARED).all) == {"a", "b", "c", "d"}


def test_a_short_write_goes_on(path):
    with Responses(path, SHARED).appending() as sink:
        whole = sink._stream
        sink._stream = SimpleNamespace(write=lambda data: whole.write(data[:7]))
        sink.add([("c", FIRST)])
    assert Responses(path, SHARED).get("c") == FIRST


def test_a_read_only_folder_is_read_and_not_written(path, monkeypatch):
    def refuse(self, mode="r", *arguments, **more):
        if set(mode) & set("wa+"):
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return real(self, mode, *arguments, **more)

    real = pathlib.Path.open
    monkeypatch.setattr(pathlib.Path, "open", refuse)
    kept = Responses(path, SHARED)
    assert kept.get("a") == FIRST
    with pytest.raises(InputError, match=r"responses\.jsonl: cannot be written \(Read-only"):
        kept.appending().__enter__()


def test_errors_of_the_work_itself_pass(path):
    """An unreadable image is not told as an unwritable file."""
    with pytest.raises(FileNotFoundError, match="picture"), Responses(path, SHARED).appending():
        raise FileNotFoundError("picture")


def test_appending_goes_on_where_it_ended(path):
    with Responses(path, SHARED).appending() as sink:
        sink.add([("c", FIRST)])
    kept = Responses(path, SHARED)
    assert [kept.get(x) for x in "abc"] == [FIRST, SECOND, FIRST]
    assert len(path.read_bytes().split(b"\n")) == 5


def test_a_trial_written_twice_is_one(path):
    """The record that is there stays: tables made before hold it."""
    before = path.read_bytes()
    with Responses(path, SHARED).appending() as sink:
        sink.add([("a", SECOND), ("c", FIRST)])
    assert path.read_bytes().startswith(before)
    assert path.read_bytes().count(b'"id": "a"') == 1
    kept = Responses(path, SHARED)
    assert [kept.get(x) for x in "abc"] == [FIRST, SECOND, FIRST]


def test_a_torn_last_line_is_done_again(path):
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, len(whole) - 1, len(whole) - 12):
        path.write_bytes(whole[:cut])
        kept = Responses(path, SHARED)
        assert (kept.get("a"), kept.get("b")) == (FIRST, None)
        with kept.appending() as sink:
            sink.add([("b", SECOND)])
        assert path.read_bytes() == whole


def test_a_torn_header_is_written_again(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    kept = Responses(path, SHARED)
    with kept.appending() as sink:
        sink.add([("a", FIRST), ("b", SECOND)])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("begun", [b"", b'{"mod', b"\0\0"])
def test_a_file_of_no_whole_line_has_not_begun(path, begun):
    """A kill, or a crash of the machine, just after it was created."""
    whole = path.read_bytes()
    path.write_bytes(begun)
    assert read_header(path) is None
    kept = Responses(path, SHARED)
    assert not kept.all
    with kept.appending() as sink:
        sink.add([("a", FIRST), ("b", SECOND)])
    assert path.read_bytes() == whole
    assert read_header(path) == SHARED


@pytest.mark.parametrize("line", [b"[1]\n", b"5\n", b"\n", b"\0\n"])
def test_a_first_line_that_says_nothing_is_named(path, line):
    path.write_bytes(line)
    with pytest.raises(InputError, match=r"responses\.jsonl"):
        Responses(path, SHARED)
    with pytest.raises(InputError, match=r"responses\.jsonl"):
        read_header(path)


@pytest.mark.parametrize("name", ["run.json", "responses.jsonl"])
def test_what_is_a_folder_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"{name}: cannot be read \(.*Is a directory"):
        Responses(Run(tmp_path, "one", RUN).responses, SHARED)


def test_damage_within_is_named_by_line(path):
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:9], *lines[2:]]))
    with pytest.raises(InputError, match=r"responses\.jsonl:2: not JSON"):
        Responses(path, SHARED)


def test_a_call_knows_what_it_found_when_it_first_began(path):
    with Responses(path, SHARED).appending() as sink:
        assert len(sink.begin("x")) == 2
        sink.add([("c", FIRST)])
        assert len(sink.begin("x")) == 2
        assert len(sink.begin("y")) == 3
    begun = path.read_bytes()
    again = Responses(path, SHARED)
    with again.appending() as sink:
        sink.add([("d", FIRST), ("a", FIRST)])
        assert [sink.begin(x) for x in "xyz"] == [{*"ab"}, {*"abc"}, {*"abcd"}]
    assert set(again.all) == set(Responses(path, SHARED).all) == {"a", "b", "c", "d"}
    assert path.read_bytes().startswith(begun)
    calls = [json.loads(line) for line in path.read_text("utf-8").split("\n") if '"call"' in line]
    digests = [sha256(x.encode()).hexdigest()[:24] for x in "xyz"]
    assert calls == [{"call": x, "before": n} for x, n in zip(digests, (2, 3, 4), strict=True)]


def test_records_without_a_file_are_kept_in_memory():
    kept = Responses(None, SHARED)
    with kept.appending() as sink:
        assert not sink.begin("x")
        sink.add([("a", FIRST)])
        sink.add([("a", SECOND), ("b", SECOND)])
        assert not sink.begin("x")
    assert kept.all == {"a": FIRST, "b": SECOND}


def test_a_torn_call_begins_where_it_began(path):
    whole = path.read_bytes()
    with Responses(path, SHARED).appending() as sink:
        sink.begin("x")
    called = path.read_bytes()
    for cut in (len(whole) + 1, len(called) - 1):
        path.write_bytes(called[:cut])
        with Responses(path, SHARED).appending() as sink:
            assert len(sink.begin("x")) == 2
        assert path.read_bytes() == called


def test_a_file_begun_by_a_call(tmp_path):
    with Responses(tmp_path / "r.jsonl", SHARED).appending() as sink:
        assert not sink.begin("x")
        sink.add([("a", FIRST)])
    kept = Responses(tmp_path / "r.jsonl", SHARED)
    assert kept.all == {"a": FIRST}


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

    full = OSError(errno.ENOSPC, "No space left on device")
    for error, told in ((KeyboardInterrupt(), KeyboardInterrupt), (full, InputError)):
        monkeypatch.setattr(os, "replace", Mock(side_effect=error))
        with pytest.raises(
            told, match=None if error is not full else r"x\.json: cannot be written"
        ):
            write_json(path, {"a": 3})
        assert json.loads(path.read_text()) == {"a": 2}
        assert os.listdir(path.parent) == ["x.json"]


RUN = {"model": "m1", "data": "organism"}


def test_a_run_is_shared_by_notebooks(tmp_path):
    for name in ("one", "two", "one"):
        run = Run(tmp_path / "run", name, RUN)
        assert run.responses == tmp_path / "run" / "responses.jsonl"
    begun = json.loads((tmp_path / "run" / "run.json").read_text())
    assert begun == {**RUN, "versions": folder.versions()}


@pytest.mark.parametrize(("key", "value"), [("model", "m2"), ("data", "set.jsonl")])
def test_a_folder_of_another_model_or_data_is_refused(tmp_path, key, value):
    run = Run(tmp_path, "one", RUN)
    run.finish({})
    with pytest.raises(InputError, match=rf"{key} = {RUN[key]!r}, not {value!r}.*another output"):
        Run(tmp_path, "one", {**RUN, key: value})
    assert run.manifest.is_file()


@pytest.mark.parametrize(
    ("content", "why"), [("", "it is empty"), ("{", "Expecting"), ("[1]", "no JSON object")]
)
def test_a_damaged_run_is_named(tmp_path, content, why):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=rf"run\.json: cannot be read \(.*{why}"):
        Run(tmp_path, "one", RUN)
    assert (tmp_path / "run.json").read_text() == content


@pytest.mark.parametrize("content", [b"", b"PAR1"])
def test_a_damaged_table_is_named(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet: cannot be read") as raised:
        store.read_table(tmp_path / "x.parquet")
    assert "\n" not in str(raised.value)


def test_other_versions_are_warned_of_and_recorded(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run(tmp_path, "one", RUN)
        Run(tmp_path, "one", RUN)
    before = folder.versions()
    now = {**before, "torch": "99.1", "numpy": "98.2"}
    monkeypatch.setattr(folder, "versions", lambda: now)
    with pytest.warns(UserWarning, match=r"torch .*, now 99\.1; numpy .* 98\.2: ") as warned:
        run = Run(tmp_path, "two", RUN)
    assert len(warned) == 1
    run.finish({})
    manifest = json.loads(run.manifest.read_text())
    assert (manifest["versions"], manifest["begun_with"]) == (now, before)


def test_tables_and_figures_are_replaced_whole(tmp_path):
    """What is cut short by a full disk or a kill leaves the file that was there."""
    run = Run(tmp_path, "one", RUN)
    rows = pd.DataFrame({"rate": [0.5]})
    run.table("rates", rows)
    run.figure("line", plt.figure())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}

    class Broken:
        def to_parquet(self, path):
            pathlib.Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        def savefig(self, path, **_):
            self.to_parquet(path)

    for name, write in (("rates.parquet", run.table), ("line.png", run.figure)):
        with pytest.raises(InputError, match=rf"{name}: cannot be written \(No space left"):
            write(name.split(".")[0], Broken())
    after = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert after == before


def test_a_run_folder_that_cannot_be_written(tmp_path, monkeypatch):
    Run(tmp_path, "one", RUN).finish({})
    refused = Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
    monkeypatch.setattr(pathlib.Path, "unlink", refused)
    with pytest.raises(InputError, match=r"one\.json: cannot be written \(Read-only file system\)"):
        Run(tmp_path, "one", RUN)


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
        assert len(sink.begin("one")) == 1
        sink.add([("b", Response("y", (2,), True)), ("c", Response("z", (3,), True))])
    again = Responses(path, shared)
    with again.appending() as sink:
        assert sink.begin("one") == {"a"}
        assert len(sink.begin("two")) == 3
    assert Responses(path, shared).get("c") == Response("z", (3,), True)
    assert path.read_text().count("call") == 2
