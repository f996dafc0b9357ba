"""The benchmarks' arithmetic and table, on made-up timings; nothing is timed."""

import json
from itertools import count

import pytest
import torch

from benchmarks import baking, lines
from benchmarks.report import ON_GPU, Row, Target, check, cost, faster, section, table, write
from benchmarks.timing import Case, Ratio, Timings, measure

FAKE = Timings(
    {"slow": (10.0, 30.0, 11.0, 12.0, 12.0), "ours": (1.0, 3.0, 1.0, 1.0, 2.0)}, outputs={}
)
"""Ratios 10, 10, 11, 12 and 6; the second round was disturbed."""


def test_a_ratio_is_taken_round_by_round():
    ratio = FAKE.ratio("slow", "ours")
    assert ratio.rounds == (10, 10, 11, 12, 6)
    assert ratio.median == 10  # that of the medians, 12 / 1, would be 12
    assert ratio.quartiles == (10, 11)


@pytest.mark.parametrize(
    ("target", "verdict"), [(9, "yes"), (10, "yes"), (10.5, "no, open"), (11.5, "no"), (None, "")]
)
def test_the_verdict_is_computed(target, verdict):
    assert faster(FAKE, "slow", what="job", target=target).verdict == verdict


def test_a_cost_is_turned_round():
    row = cost(FAKE, "ours", ours="slow", what="job", target=2)
    assert row.figure.median == 10
    assert row.verdict == "no"
    assert cost(FAKE, "slow", what="job", target=0.5).verdict == "yes"


def test_a_check_that_is_no_number_fails():
    close = Target("at most", 1e-5)
    assert check("equal", "fair", 3e-6, close).verdict == "yes"
    assert check("equal", "fair", 2e-5, close).verdict == "no"
    assert check("equal", "fair", float("nan"), close).verdict == "no"


def test_the_table_names_times_ratio_spread_and_target():
    text = table([faster(FAKE, "slow", what="a|b", target=10, note="two\nlines")])
    assert text.splitlines()[0].startswith("| what | baseline | ours | ratio | target | met |")
    assert text.splitlines()[2] == (
        "| a\\|b | slow 12 s | ours 1 s | 10 [10, 11] | ≥ 10 | yes | two lines |"
    )


def test_a_part_replaces_only_the_part_of_its_name(tmp_path):
    path = tmp_path / "RESULTS.md"
    for name, text in (("a", "old \\1"), ("b", "other"), ("a", "new \\1")):
        write(path, name, text)
    whole = path.read_text(encoding="utf-8")
    assert whole.startswith("# Benchmarks")
    assert "old" not in whole
    assert whole.index("new \\1") < whole.index("other")
    assert whole.count("<!-- a -->") == 1


def test_what_no_gpu_has_measured_is_listed_last(tmp_path):
    path = tmp_path / "RESULTS.md"
    write(path, "sweep cpu", "on the CPU")
    write(path, "steering cuda", "on a GPU")
    _, _, missing = path.read_text(encoding="utf-8").partition("## Not measured")
    assert ON_GPU["sweep"] in missing
    assert ON_GPU["steering"] not in missing
    for topic in ON_GPU:
        write(path, f"{topic} cuda", "on a GPU")
    assert "Not measured" not in path.read_text(encoding="utf-8")


def test_a_section_says_when_and_on_what():
    row = Row("job", "", "", Ratio((1.0, 2.0, 3.0)))
    cpu = torch.device("cpu")
    text = section("Topic", "A job.", [row], device=cpu, rounds=3, load=0.5)
    assert f"torch {torch.__version__}" in text
    assert "3 rounds; load before the start 0.5" in text
    assert "2 [1.5, 2.5]" in text


def test_ways_are_timed_in_turn_and_set_up_anew():
    log, given = [], count()
    cases = {
        name: Case(lambda number, name=name: log.append(name) or number, lambda: (next(given),))
        for name in ("a", "b")
    }
    ticks = count()
    timings = measure(cases, 3, clock=lambda: float(next(ticks)))
    assert log == ["b", "a", "a", "b", "b", "a", "a", "b"]  # the first two are not counted
    assert timings.seconds == {"a": (1, 1, 1), "b": (1, 1, 1)}
    assert timings.outputs == {"a": 6, "b": 7}


def test_the_page_has_what_was_stored_of_baking():
    results = json.loads(baking.RESULTS.read_text())
    assert baking.text(results) in baking.PAGE.read_text()
    assert baking.chosen_alpha() == results["alpha"]


def test_the_module_keeps_to_the_bounds_of_make_lines():
    sizes = [lines.measured(path) for path in sorted(lines.HOUSE.rglob("*.py"))]
    over = {name: have for name, have in lines.bounds(sizes).items() if have[0] > have[1]}
    assert not over
