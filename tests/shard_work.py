"""A run's shards, worked on and read back."""

import json

from cmrm_utils.jobs.shards import Shard, open_worker
from cmrm_utils.store import Responses

PARAMETERS = {
    "data": "organism",
    "max_new_tokens": 4,
    "settings": {"batch_size": 4},
    "n": 3,
    "n_validation": 3,
    "n_test": 3,
    "alpha": 0.5,
    "alphas": [0.5, 1.0],
}


def work(folder, parameters, number, count, experiments=("01", "03", "04", "05")):
    worker = open_worker(folder, parameters, Shard(number, count))
    return worker, worker.work([(name, parameters) for name in experiments])


def texts(folder):
    path = folder / "responses.jsonl"
    shared = json.loads(path.open().readline())
    return {key: response.text for key, response in Responses(path, shared).all.items()}
