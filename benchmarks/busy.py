"""A machine that somebody else is computing on too: what waiting threads cost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from time import perf_counter

from benchmarks.report import Row, cost
from benchmarks.setting import Setting, cold
from benchmarks.timing import Case, measure
from cmrm_utils import Trial, generate, load_samples, load_vlm
from cmrm_utils.engine.cores import CORES
from cmrm_utils.spinning import COUNT, SPINS, WAITS

TITLE = "A busy machine"
COUNT_OF_TRIALS, NEW, THREADS = 256, 32, 2

WAYS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "as it comes": ("torch", {}),
    "ours": ("cmrm_utils", {}),
    "passive": ("torch", {WAITS: "PASSIVE"}),
}
"""What each way's process imports first, and what stands in its environment.

After torch, ``import cmrm_utils`` sets nothing.
"""

NEIGHBOUR = f"""
import sys, threading, torch
torch.set_num_threads(1)
def work():
    matrix = torch.randn(700, 700)
    while True:
        matrix @ matrix
for _ in range({THREADS}):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()  # until whoever started it is gone
"""


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        f"Here the model is `organism`: one `generate` of {COUNT_OF_TRIALS} trials, {NEW} new "
        "tokens. *as it comes*: OpenMP's threads wait for each other as its own default has it. "
        f"*ours*: {SPINS}={COUNT}, as `import cmrm_utils` sets it, and threads that fit the free "
        f"cores, as the engine sets them. *passive*: {WAITS}=PASSIVE. "
        f"*busy*: beside a process of {THREADS} threads that multiply matrices. Each way is a "
        "process; they take turns."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table; each way's process is started once, then told when to run."""
    with ExitStack() as ends:
        loop = ends.enter_context(_process([sys.executable, "-c", NEIGHBOUR], {}))
        quiet = partial(_signalled, loop, signal.SIGSTOP)
        busy = partial(_signalled, loop, signal.SIGCONT)
        workers = {}
        quiet()
        for name, (first, env) in WAYS.items():
            code = f"import {first}; from benchmarks.busy import work; work({name == 'ours'})"
            workers[name] = ends.enter_context(_process([sys.executable, "-c", code], env))
        cases = {
            f"{name}, quiet": Case(partial(_told, worker), quiet)
            for name, worker in workers.items()
        }
        cases["ours, busy"] = Case(partial(_told, workers["ours"]), busy)
        timings = measure(cases, setting.rounds)
        busy()
        start = perf_counter()
        _told(workers["as it comes"])
        once = perf_counter() - start
    came = "as it comes, quiet"
    usual = timings.median(came)
    return [
        cost(timings, came, ours="ours, quiet", what="quiet", target=1.1),
        cost(timings, "ours, quiet", ours="ours, busy", what="busy", target=4),
        cost(timings, came, ours="passive, quiet", what="quiet, passive"),
        Row(
            "busy, as it comes",
            f"{came} {usual:.3g} s",
            f"as it comes, busy {once:.3g} s",
            once / usual,
            note="a single run: it takes long",
        ),
    ]


@contextmanager
def _process(command: list[str], env: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A process that has said that it is ready, none of the variables set but those of ``env``."""
    bare = {name: value for name, value in os.environ.items() if name not in (SPINS, WAITS)}
    pipe = subprocess.PIPE
    made = subprocess.Popen(command, env={**bare, **env}, stdin=pipe, stdout=pipe, text=True)
    try:
        _said(made)
        yield made
    finally:
        made.kill()
        made.wait()


def _said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise RuntimeError(f"{' '.join(process.args)} ended early")  # type: ignore[arg-type]
    return line


def _signalled(process: "subprocess.Popen[str]", sign: signal.Signals) -> tuple[()]:
    process.send_signal(sign)
    return ()


def _told(process: "subprocess.Popen[str]") -> None:
    """Let a worker run once, and wait until it has."""
    assert process.stdin is not None
    process.stdin.write("run\n")
    process.stdin.flush()
    _said(process)


def work(ours: bool) -> None:
    """Be a worker: one ``generate`` for each line that is read."""
    if not ours:
        CORES.give_way = lambda: None  # type: ignore[method-assign]
    vlm = load_vlm("organism", device="cpu")
    samples = islice(load_samples("organism", "test"), COUNT_OF_TRIALS)
    trials = [
        Trial(sample, "own" if sample.image is not None and i % 2 else "none")
        for i, sample in enumerate(samples)
    ]
    print("ready", flush=True)
    for _ in sys.stdin:
        generate(cold(vlm), trials, max_new_tokens=NEW)
        print("done", flush=True)
