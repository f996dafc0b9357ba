"""A run that is killed again and again ends as one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from cmrm_utils.paths import ROOT

KILLS = 20
HERE = Path(__file__).parent


class Server:
    """Lives of the run of :mod:`killable`, one at a time."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "killable.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{HERE}"},
            start_new_session=True,
        )
        assert self._process.stdout.readline() == "ready\n"

    def start(self, folder):
        """Begin a life; its process's number, which is no other's until :meth:`end`."""
        return self._ask(folder)

    def end(self):
        """Wait for the life's end; its exit status, negative for a signal."""
        return self._ask("end")

    def _ask(self, line):
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self):
        """End the server, and a life that hangs."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


def progress(folder):
    """How far a run has come: whole files, and the lines of those that grow."""
    files = [path for path in folder.rglob("*") if path.suffix in (".parquet", ".safetensors")]
    return len(files) + sum(p.read_bytes().count(b"\n") for p in folder.rglob("*.jsonl"))


def finished(folder):
    return (folder / "manifests" / "work.json").exists()


def killed(server, folder, more, delay):
    """One life: killed ``delay`` seconds after ``more`` steps of progress; whether it was."""
    begun, life = progress(folder), server.start(folder)
    patience = time.monotonic() + 60
    while progress(folder) < begun + more and not finished(folder):
        assert time.monotonic() < patience, "no progress"
        time.sleep(0.0005)
    time.sleep(delay)
    if not finished(folder):
        os.kill(life, signal.SIGKILL)
    status = server.end()
    if status == 0:
        return False
    assert status == -signal.SIGKILL
    assert progress(folder) > begun
    return not finished(folder)


def tear(path, dice):
    """The last line half written, as a crash of the machine may leave it."""
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    os.truncate(path, dice.randrange(last, len(whole)))


def records(path):
    """Records by id; none, and no call, is there twice."""
    rows = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
    names = [row.get("id") or row["call"] for row in rows]
    assert len(names) == len(set(names))
    return {row.pop("id"): row for row in rows if "id" in row}


def assert_same(folder, whole):
    for name in ("responses.jsonl", "verdicts/helps.jsonl"):
        assert records(folder / name) == records(whole / name)
    for name in ("metrics/work.json", "vectors/v.safetensors", "manifests/work.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    for table in ("responses", "rates"):
        one, two = (pd.read_parquet(x / "tables" / f"{table}.parquet") for x in (folder, whole))
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_a_run_that_is_killed_ends_as_one_that_is_not(server, tmp_path):
    whole = tmp_path / "whole"
    server.start(whole)
    assert server.end() == 0
    dice, kills, rounds = random.Random(0), [], 0
    while len(kills) < KILLS:
        folder = tmp_path / f"killed{rounds}"
        rounds += 1
        while killed(server, folder, dice.randint(1, 12), dice.uniform(0, 0.01)):
            kills.append(progress(folder))
            for path in folder.rglob("*.jsonl"):
                if dice.random() < 0.3:
                    tear(path, dice)
        assert finished(folder)
        assert_same(folder, whole)
    end = progress(whole)
    assert sum(0.1 * end < each < 0.9 * end for each in kills) >= KILLS / 2  # well inside
