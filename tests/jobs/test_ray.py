"""Two local workers of Ray, one of which is killed."""

import logging
import os
import signal
import threading
import time

import psutil
import pytest
from shard_work import PARAMETERS, texts, work

from cmrm_utils import InputError
from cmrm_utils.jobs.ray import respond
from cmrm_utils.jobs.shards import ended, merge

ray = pytest.importorskip("ray")


@pytest.fixture
def ray_starts():
    """Not every machine lets Ray start: some sandboxes have no sockets or shared memory for it."""
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # whatever it is that such a machine lacks
        pytest.skip(f"Ray does not start here: {error}")
    yield
    ray.shutdown()


def workers():
    """Processes of this one's Ray that hold a model."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.is_running() and "MapWorker" in " ".join(p.cmdline())]


@pytest.mark.usefixtures("ray_starts")
def test_a_killed_worker_costs_no_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parameters = {**PARAMETERS, "model": "organism", "n_validation": 8, "max_new_tokens": 32}
    killed = []

    def kill():
        while not killed:
            parts = list((tmp_path / "ray" / "parts").glob("*.jsonl"))
            if any(path.stat().st_size > 2000 for path in parts) and (found := workers()):
                os.kill(found[0].pid, signal.SIGKILL)
                killed.append(found[0].pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    respond(tmp_path / "ray", [("04", parameters)], 2)
    assert killed
    merge(tmp_path / "ray")
    work(tmp_path / "one", parameters, 1, 1, ["04"])
    merge(tmp_path / "one")
    assert texts(tmp_path / "ray") == texts(tmp_path / "one")


def test_parts_of_another_number_of_workers(tmp_path):
    """Refused before Ray starts, and left as they are."""
    (tmp_path / "parts").mkdir()
    mark = tmp_path / "parts" / "1-of-4.json"
    mark.write_text('{"lists": {}, "waiting": ["04: 3 responses of other shards"], "responses": 0}')
    with pytest.raises(InputError, match="parts of 4 shards, now they are to be of 8"):
        respond(tmp_path, [("04", PARAMETERS)], 2)
    assert mark.exists()


@pytest.mark.usefixtures("ray_starts")
def test_what_never_comes_is_not_waited_for(tmp_path, monkeypatch):
    """Every round leaves the same to be waited for; a mark of an earlier run plays no part."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("cmrm_utils.jobs.ray.SHARES", 1)
    (tmp_path / "parts").mkdir()
    stale = '{"lists": {"01, list 1": "old"}, "waiting": [], "responses": 0}'
    (tmp_path / "parts" / "1-of-1.json").write_text(stale)
    real = ended

    def waiting(folder):
        return {name: {**mark, "waiting": ["for ever"]} for name, mark in real(folder).items()}

    monkeypatch.setattr("cmrm_utils.jobs.ray.ended", waiting)
    with pytest.raises(InputError, match=r"wait for what none of them makes \(for ever\)"):
        respond(tmp_path, [("01", {**PARAMETERS, "model": "organism", "n": 2})], 1)
    assert merge(tmp_path) > 0


def test_no_workers(tmp_path):
    with pytest.raises(InputError, match="--workers"):
        respond(tmp_path, [], 0)
