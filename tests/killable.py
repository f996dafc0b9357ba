"""A small run that a test kills: a server that forks a process for each life of the run.

What takes seconds (torch, transformers, the models) is done once, before the first fork. The server
keeps to one thread: a fork would have lost the others. It reads run folders from standard input,
one a line. For each it forks and prints the process's number; at the next line it prints how that
one ended: till then the number is no other process's.
"""

import os
import sys
import threading
from pathlib import Path

import pyarrow
import torch
from conftest import make_tiny
from families import TINY
from language_models import make_model, make_tokenizer
from tqdm import tqdm

from cmrm_utils import CMRM, extract_shift, generate, load_samples, table
from cmrm_utils.judges.model_judges import JUDGES, ModelJudge, judge_responses
from cmrm_utils.judges.outcomes import judge
from cmrm_utils.judges.reader import Reader
from cmrm_utils.loading import wrap
from cmrm_utils.organism.recipe import build_processor
from cmrm_utils.results.rates import measures
from cmrm_utils.studies.folder import Run
from cmrm_utils.trials import grid
from cmrm_utils.vectors import cached_shift


def prepare():
    """The models and samples that every life of the run has."""
    torch.set_num_threads(1)
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    vlm = make_tiny(build_processor(TINY, 0))
    vlm.batch_size = 4
    tokenizer = make_tokenizer()
    reader = Reader.of(wrap(make_model(tokenizer), tokenizer, name="judge"))
    every = load_samples("organism", "validation")
    samples = [s for kind in ("harmful", "benign") for s in [s for s in every if s.kind == kind]]
    extract_shift(vlm, samples[:2])  # what is made late is made here
    return vlm, ModelJudge("llama-3-helps", JUDGES["llama-3-helps"], reader), samples


def work(folder, vlm, asked, samples):
    """As the notebooks do: vectors, two overlapping lists of trials, verdicts, tables, the end."""
    run = Run(folder, "work", {"model": vlm.fingerprint, "data": "organism"})
    vectors = cached_shift(vlm, samples[:8], run.folder / "vectors" / "v.safetensors")
    some = samples[::8][:18]
    plain = grid(some, images=("own", "none", "blank"))
    edited = grid(some, edits=[None, *(CMRM(vectors, alpha) for alpha in (0.2, 0.5, 1.0))])
    frames = []
    for trials in (plain, edited):
        responses = generate(vlm, trials, max_new_tokens=8, out=run.responses)
        frames.append(judge(table(trials, responses)))
    rows = frames[1]
    found = judge_responses(
        asked,
        list(rows["query"]),
        list(rows["response"]),
        out=run.folder / "verdicts" / "helps.jsonl",
        batch_size=4,
    )
    rows = rows.assign(verdict=[v.label for v in found], score=[v.score for v in found])
    run.table("responses", rows)
    run.table("rates", measures(rows.assign(setting=rows["alpha"].astype(str)), ["setting"]))
    run.metrics({"score": rows["score"].mean(), "empty": (rows["response"] == "").mean()})
    run.finish({})


def serve():
    """Live once for each folder that is read."""
    kit = prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            tqdm.set_lock(threading.RLock())  # a killed life may have held the one all share
            try:
                work(Path(line.strip()), *kit)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
