"""Two local workers of Ray, one of which is killed."""

import logging
import os
import signal
import threading
import time

import psutil
import pytest
from test_shards import PARAMETERS, texts, work

from cmrm_utils import InputError
from cmrm_utils.ray_engine import respond
from cmrm_utils.shards import merge

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
    parameters = {**PARAMETERS, "model": "organism", "n": 8, "max_new_tokens": 32}
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


def test_no_workers(tmp_path):
    with pytest.raises(InputError, match="--workers"):
        respond(tmp_path, [], 0)
