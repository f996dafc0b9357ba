"""Runs that are shared out, and brought together again."""

import json

import pytest

from cmrm_utils import InputError, generate, load_samples
from cmrm_utils.engine import shared_out
from cmrm_utils.shards import Shard, merge, open_worker
from cmrm_utils.store import Responses
from cmrm_utils.trials import grid

PARAMETERS = {
    "data": "organism",
    "max_new_tokens": 4,
    "settings": {"batch_size": 4},
    "n": 3,
    "n_test": 3,
    "alpha": 0.5,
    "alphas": [0.5, 1.0],
}


@pytest.fixture
def parameters(family_folders):
    return {**PARAMETERS, "model": str(family_folders["llava"])}


def work(folder, parameters, number, count, experiments=("01", "03", "04", "05")):
    worker = open_worker(folder, parameters, Shard(number, count))
    return worker, worker.work([(name, parameters) for name in experiments])


def texts(folder):
    path = folder / "responses.jsonl"
    shared = json.loads(path.open().readline())
    return {key: response.text for key, response in Responses(path, shared).all.items()}


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_shards_that_are_none(text):
    with pytest.raises(InputError, match="2/4"):
        Shard.parse(text)


def test_shares_are_all_of_it_and_nothing_twice(tiny, samples):
    trials = grid(samples, images=["own", "none", "blank"])
    shares = [shared_out(tiny, [*trials, *trials], number, 3) for number in (1, 2, 3)]
    ids = [trial.id for share in shares for trial in share]
    assert len(ids) == len(set(ids))
    assert set(ids) == {trial.id for trial in trials}
    assert min(map(len, shares)) > len(ids) / 6


def test_three_shards_say_what_one_process_does(parameters, tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    assert work(one, parameters, 1, 1)[1] == []
    for number in (1, 2, 3):
        waiting = work(many, parameters, number, 3)[1]
        assert bool(waiting) == (number < 3), waiting
    with pytest.raises(InputError, match=r"shard 1/3 has trials left"):
        merge(many)
    for number in (1, 2):
        assert work(many, parameters, number, 3)[1] == []
    assert merge(one) == merge(many) == len(texts(one)) > 300
    assert texts(one) == texts(many)
    assert not (many / "parts").exists()
    assert merge(many) == 0


def test_a_merge_misses_no_shard(parameters, tmp_path):
    for number in (1, 3):
        work(tmp_path, parameters, number, 3, ["01"])
    with pytest.raises(InputError, match=r"shard 2/3 has not ended"):
        merge(tmp_path)
    work(tmp_path, parameters, 1, 2, ["01"])
    with pytest.raises(InputError, match="parts of 2 and of 3 shards"):
        merge(tmp_path)


def test_what_the_run_has_is_not_asked_again(parameters, tmp_path):
    worker, _ = work(tmp_path, parameters, 1, 1, ["01"])
    merge(tmp_path)
    requests = load_samples("organism", "validation")[:8]
    generate(worker.vlm, grid(requests), max_new_tokens=4, out=tmp_path / "responses.jsonl")
    before = texts(tmp_path)
    work(tmp_path, parameters, 1, 1, ["01"])
    merge(tmp_path)
    assert texts(tmp_path) == before
