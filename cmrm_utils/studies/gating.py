"""Notebook 09: gates."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal

import pandas as pd
from torch import Tensor

from cmrm_utils.edits import Edit
from cmrm_utils.engine.loops import hidden_states
from cmrm_utils.methods.base import Anchors, Method, by_alpha, edited, shown
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.methods.gate import How, fit_detector, fit_gate, gated, refusal_lens
from cmrm_utils.results.rates import measures, paired_changes, rates, trade_off
from cmrm_utils.sample import Sample
from cmrm_utils.studies import sweep
from cmrm_utils.studies.abilities import requests
from cmrm_utils.studies.notebook import ANCHORS, Notebook
from cmrm_utils.studies.sweep import Chosen
from cmrm_utils.trials import Trial

GATES: dict[str, tuple[str, How | Literal["detector"]]] = {
    "text state, mean": ("none", "mean"),
    "text state, probe": ("none", "probe"),
    "text state, neighbours": ("none", "neighbours"),
    "text state, HiddenDetect": ("none", "detector"),
    "image state, mean": ("own", "mean"),
    "image state, probe": ("own", "probe"),
    "image state, neighbours": ("own", "neighbours"),
    "image state, HiddenDetect": ("own", "detector"),
}
"""What a gate reads, and how it is fitted; the invented world has the mean and the probe alone."""


ALWAYS, TOLD = "always", "told the truth"


def open_gates(nb: Notebook, samples: Sequence[Sample]) -> dict[str, dict[str, bool]]:
    """Which gates are on, by gate and sample id; all are off where there is no image.

    Fitted on the anchors: harmful requests against benign ones and questions. ``always`` is every
    image's; ``told the truth`` is the harmful requests', which nobody can know.
    """
    seen = {sample.id: sample.image is not None for sample in samples}
    gates = {ALWAYS: seen, TOLD: {s.id: seen[s.id] and s.harmful for s in samples}}
    harmless = [*nb.anchors.benign, *nb.questions("anchors", ANCHORS)]

    @cache
    def states(image: str) -> list[Tensor]:
        return [
            hidden_states(nb.vlm, shown(these, image))
            for these in (nb.anchors.harmful, harmless, samples)
        ]

    lens = refusal_lens(nb.vlm)
    # The world's vocabulary lacks the words that the detector looks for.
    world = any(sample.world for sample in samples)
    for name, (image, how) in GATES.items():
        if world and how not in ("mean", "probe"):
            continue
        bad, good, own = states(image)
        gate = fit_detector(bad, good, lens) if how == "detector" else fit_gate(bad, good, how)
        on = gate.on(own)
        gates[name] = {s.id: seen[s.id] and is_on for s, is_on in zip(samples, on, strict=True)}
    return gates


def plain_trials(nb: Notebook, split: str, n: int | None) -> list[Trial]:
    """Requests and questions of a split, unedited."""
    return nb.plainly([*requests(nb, split, n), *nb.questions(split, n)])


def gate_methods(
    gates: Mapping[str, Mapping[str, bool]], alphas: Sequence[float]
) -> dict[str, Method]:
    """Dataset-level CMRM behind each gate, as ``gate: NAME``.

    Args:
        gates: of :func:`open_gates`.
        alphas: strengths; 0 is left out.
    """

    def behind(name: str, on: Mapping[str, bool]) -> Method:
        def fit(anchors: Anchors, _: Sequence[Sample]) -> Callable[[float], Edit]:
            v = anchors.shift()
            return lambda alpha: gated(CMRM(v, alpha), on, name=name)

        return by_alpha(fit, alphas)

    return {f"gate: {name}": behind(name, on) for name, on in gates.items()}


def curve_trials(nb: Notebook, alphas: Sequence[float], n: int | None) -> list[Trial]:
    """The trials of :func:`gate_curves`."""
    plain = plain_trials(nb, "validation", n)
    gates = open_gates(nb, [trial.sample for trial in plain])
    return sweep.sweep_trials(nb, gate_methods(gates, alphas), plain)


def gate_curves(
    nb: Notebook, chosen: Chosen, alphas: Sequence[float], n: int | None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Every gate over the alphas on the validation split, and the alpha chosen for each.

    Args:
        nb: whose model and data.
        chosen: with the alpha of the edit that is always on.
        alphas: strengths for the gates.
        n: samples of each kind.
    """
    plain = plain_trials(nb, "validation", n)
    methods = gate_methods(open_gates(nb, [trial.sample for trial in plain]), alphas)
    always = methods.pop(f"gate: {ALWAYS}")
    swept = sweep.sweep(nb, methods, plain)
    rows = pd.concat([sweep.in_every_setting(nb, ALWAYS, always, plain), swept.rows])
    rows["method"] = rows["method"].str.removeprefix("gate: ")
    strengths = {ALWAYS: chosen.alphas["CMRM dataset"]}
    strengths |= {name.removeprefix("gate: "): alpha for name, alpha in swept.alphas.items()}
    return trade_off(rows, ["method", "alpha"]), strengths


def test_trials(
    nb: Notebook, strengths: Mapping[str, float], n: int | None
) -> tuple[dict[str, dict[str, bool]], list[Trial]]:
    """Which gates are on for the test split, and it unedited and behind each at its alpha."""
    plain = plain_trials(nb, "test", n)
    gates = open_gates(nb, [trial.sample for trial in plain])
    v = nb.anchors.shift()
    behind = [
        trial
        for name, on in gates.items()
        for trial in edited(plain, gated(CMRM(v, strengths[name]), on, name=name))
    ]
    return gates, [*plain, *behind]


def gate_test(
    nb: Notebook, strengths: Mapping[str, float], n: int | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Every gate at its alpha on the test split, and ``never`` an edit.

    Returns:
        :func:`.rates.measures` by ``method, alpha``; each gate's ``false alarms`` on
        benign requests and on questions and its ``misses`` of harmful requests, as rates; and
        :func:`cmrm_utils.results.rates.paired_changes` against ``always``.
    """
    gates, trials = test_trials(nb, strengths, n)
    rows = nb.ask(trials)
    rows["method"] = rows["method"].replace("none", "never")
    about = rows.drop_duplicates("sample").set_index("sample")[["task", "group", "kind"]]
    on = pd.DataFrame(gates).melt(var_name="method", value_name="on", ignore_index=False)
    errors = on.join(about)
    names = {"harmful": "misses", "benign": "false alarms, benign"}
    errors["error"] = errors["task"].map(names).fillna("false alarms, questions")
    errors["wrong"] = errors["on"] != (errors["task"] == "harmful")
    counted = rates(errors, "wrong", ["method", "error"])
    return measures(rows, ["method", "alpha"]), counted, paired_changes(rows, "method", ALWAYS)
