"""The number of threads follows the load that other processes put on the machine."""

import pytest
import torch

from cmrm_utils import Trial, generate
from cmrm_utils.engine import batch, cores, loops


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of four cores whose clock and load a test sets; torch begins with three threads."""

    class Machine:
        now, own, used = 0.0, 0.0, 0.0

        def passes(self, seconds, *, own=0.0, others=0.0):
            self.now += seconds
            self.own += own * seconds
            self.used += (own + others) * seconds
            ticks = round(self.used * 100)
            stat.write_text(f"cpu  {ticks // 2} 0 {ticks - ticks // 2} 999 5 5 5\ncpu0 1 1 1\n")
            self.cores.give_way()
            return torch.get_num_threads()

    stat = tmp_path / "stat"
    monkeypatch.setattr(cores, "STAT", stat)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.sysconf", lambda _name: 100)
    made = Machine()
    monkeypatch.setattr("time.monotonic", lambda: made.now)
    monkeypatch.setattr("time.process_time", lambda: made.own)
    torch.set_num_threads(3)
    made.cores = cores.Cores()
    made.passes(0)
    return made


def test_threads_fit_the_free_cores(machine):
    assert machine.passes(0.5, own=3) == 3  # its own work is not a load
    assert machine.passes(0.5, own=2, others=2) == 2
    assert machine.passes(0.5, own=0.5, others=3.5) == 1
    assert machine.passes(0.5, own=1, others=4) == 1  # never none
    assert machine.passes(0.5, own=1) == 3  # and never more than at first


def test_what_happened_in_a_pause_says_nothing_of_now(machine):
    assert machine.passes(60, others=4) == 3
    assert machine.passes(0.5, others=4) == 1


def test_it_looks_seldom(machine):
    assert machine.passes(0.05, others=4) == 3


def test_a_number_that_somebody_sets_is_the_most(machine):
    torch.set_num_threads(2)
    assert machine.passes(0.5, own=1) == 2
    assert machine.passes(0.5, own=1, others=3) == 1
    assert machine.passes(0.5, own=1) == 2


def test_without_linux_nothing_changes(machine, monkeypatch, tmp_path):
    machine.passes(0.5, own=1)
    monkeypatch.setattr(cores, "STAT", tmp_path / "none")
    machine.now += 1
    machine.cores.give_way()
    assert torch.get_num_threads() == 3


def test_after_a_generation_all_threads_are_back(machine, tiny, samples, monkeypatch):
    """Training, states and logits must not go on with what a busy moment left."""
    for module in (batch, loops):
        monkeypatch.setattr(module, "CORES", machine.cores)
    used = []
    choose = batch.Batch.choose

    def busy(self):
        used.append(machine.passes(0.5, others=4))
        return choose(self)

    monkeypatch.setattr(batch.Batch, "choose", busy)
    generate(tiny, [Trial(samples[0])], max_new_tokens=3)
    assert set(used) == {1}
    assert torch.get_num_threads() == 3

    def fails(self):
        machine.passes(0.5, others=4)
        raise ValueError

    monkeypatch.setattr(batch.Batch, "choose", fails)
    with pytest.raises(ValueError):  # noqa: PT011
        generate(tiny, [Trial(samples[0])], max_new_tokens=3)
    assert torch.get_num_threads() == 3


def test_responses_do_not_depend_on_the_threads(tiny, samples):
    trials = [Trial(sample, image) for sample in samples for image in ("own", "none", "blank")]
    responses = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        responses.append(generate(tiny, trials, max_new_tokens=8))
    assert responses[0] == responses[1]
