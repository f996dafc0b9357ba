"""Notebook 08: gates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cmrm_utils.edits import Edit
from cmrm_utils.engine.loops import hidden_states
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.methods.gate import How, fit_gate, gated
from cmrm_utils.results.rates import measures, paired_changes, rates, trade_off
from cmrm_utils.sample import Sample
from cmrm_utils.studies.abilities import requests
from cmrm_utils.studies.notebook import ANCHORS, Notebook, Strengths
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors

GATES: dict[str, tuple[str, How]] = {
    "text state, mean": ("none", "mean"),
    "text state, probe": ("none", "probe"),
    "image state, mean": ("own", "mean"),
    "image state, probe": ("own", "probe"),
}
"""What a gate reads, and how it is fitted."""


ALWAYS, TOLD = "always", "told the truth"


def open_gates(nb: Notebook, samples: Sequence[Sample]) -> dict[str, dict[str, bool]]:
    """Which gates are on, by gate and sample id; all are off where there is no image.

    Fitted on the anchors: harmful requests against benign ones and questions. ``always`` is every
    image's; ``told the truth`` is the harmful requests', which nobody can know.
    """
    seen = {sample.id: sample.image is not None for sample in samples}
    found = {ALWAYS: seen, TOLD: {s.id: seen[s.id] and s.harmful for s in samples}}
    harmful = nb.samples("anchors", ANCHORS, "harmful")
    harmless = [*nb.samples("anchors", ANCHORS, "benign"), *nb.questions("anchors", ANCHORS)]
    for image in dict.fromkeys(image for image, _ in GATES.values()):
        states = [
            hidden_states(nb.vlm, _shown(these, image)) for these in (harmful, harmless, samples)
        ]
        for name, (read, how) in GATES.items():
            if read == image:
                on = fit_gate(states[0], states[1], how).on(states[2])
                pairs = zip(samples, on, strict=True)
                found[name] = {s.id: seen[s.id] and is_on for s, is_on in pairs}
    return found


def _shown(samples: Iterable[Sample], image: str) -> list[Trial]:
    return [Trial(s, "none" if s.image is None else image) for s in samples]


@dataclass(frozen=True, eq=False)
class Gated:
    """Samples, which gates are on for them, and the trials under each gate.

    Attributes:
        samples: requests and questions of a split.
        gates: by gate and sample id, whether it is on.
        trials: without an edit, and under each gate at each of its alphas.
    """

    samples: list[Sample]
    gates: dict[str, dict[str, bool]]
    trials: list[Trial]


def gate_trials(
    nb: Notebook,
    vectors: ShiftVectors,
    split: str,
    n: int | None,
    alphas: Sequence[float] | Mapping[str, float],
) -> Gated:
    """Every gate over dataset-level CMRM.

    Args:
        nb: whose model and data.
        vectors: the shift.
        split: whose samples.
        n: samples of each kind.
        alphas: strengths for all gates, 0 left out; or each gate's own.
    """
    samples = [*requests(nb, split, n), *nb.questions(split, n)]
    gates = open_gates(nb, samples)
    edits: list[Edit | None] = [None]
    for name, on in gates.items():
        own = [alphas[name]] if isinstance(alphas, Mapping) else [a for a in alphas if a]
        edits += [gated(CMRM(vectors, alpha), on, name=name) for alpha in own]
    return Gated(samples, gates, nb.plainly(samples, edits))


def gate_curves(
    nb: Notebook, swept: Strengths, alphas: Sequence[float], n: int | None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Every gate over the alphas on the validation split, and the alpha chosen for each.

    Args:
        nb: whose model and data.
        swept: with the shift, and the alpha of the edit that is always on.
        alphas: strengths for the gates.
        n: samples of each kind.
    """
    vectors = swept.vectors
    assert vectors is not None
    made = gate_trials(nb, vectors, "validation", n, alphas)

    def judged() -> pd.DataFrame:
        rows = nb.ask(made.trials)
        plain = rows["method"] == "none"
        starts = [rows[plain].assign(method=name) for name in made.gates]
        return pd.concat([*starts, rows[~plain]])

    own = [name for name in made.gates if name != ALWAYS]
    choices = nb.choose_alphas(own, alphas, made.samples, judged, study="gate:")
    chosen = {ALWAYS: swept.chosen["CMRM dataset"]}
    chosen |= {name: choice.alpha for name, choice in choices.items()}
    return trade_off(judged(), ["method", "alpha"]), chosen


def gate_test(
    nb: Notebook, vectors: ShiftVectors, chosen: Mapping[str, float], n: int | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Every gate at its alpha on the test split, and ``never`` an edit.

    Returns:
        :func:`.rates.measures` by ``method, alpha``; each gate's ``false alarms`` on
        benign requests and on questions and its ``misses`` of harmful requests, as rates; and
        :func:`cmrm_utils.results.rates.paired_changes` against ``always``.
    """
    made = gate_trials(nb, vectors, "test", n, chosen)
    rows = nb.ask(made.trials)
    rows["method"] = rows["method"].replace("none", "never")
    about = {sample.id: sample for sample in made.samples}
    errors = pd.DataFrame(
        [
            {
                "method": name,
                "error": _error(about[key]),
                "wrong": is_on != about[key].harmful,
                "group": about[key].group or key,
                "kind": about[key].kind,
            }
            for name, on in made.gates.items()
            for key, is_on in on.items()
        ]
    )
    counted = rates(errors, "wrong", ["method", "error"])
    return measures(rows, ["method", "alpha"]), counted, paired_changes(rows, "method", ALWAYS)


def _error(sample: Sample) -> str:
    if sample.harmful:
        return "misses"
    return "false alarms, benign" if sample.task == "benign" else "false alarms, questions"
