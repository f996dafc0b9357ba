"""The studies: what each numbered notebook asks, for those who run it without the notebook.

A plan counts the trials, and workers on other machines respond to them before the notebooks do,
which then find every response there. A test holds notebooks and lists to each other.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cmrm_utils.studies import (
    ablations,
    anchors,
    comparison,
    evaluation,
    gap,
    gating,
    intervention,
    pictures,
    sweep,
)
from cmrm_utils.studies.abilities import beyond_trials, extended_trials
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial

Study = Callable[[Notebook, Mapping[str, Any]], Iterator[list[Trial]]]
"""From a notebook and its parameters to lists of trials, in the order in which they can be made."""


def nothing(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """02: none; it works on hidden states, which are quicker made than sent."""
    yield from ()


def open_questions(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """08: but for the adversarial pictures, which are searched where the notebook runs."""
    nb.vlm.check_sees_images()
    n, n_test = p["n"], p["n_test"]
    methods, plain = sweep.levels(nb, p["alphas"]), sweep.tried(nb, n)
    yield sweep.sweep_trials(nb, methods, plain)
    chosen = sweep.choose(nb, methods, plain)
    alpha = chosen.alphas["CMRM dataset"]
    sets = anchors.anchor_sets(nb, sizes=p["sizes"], draws=p["draws"])
    yield [
        *anchors.anchor_trials(nb, sets, alpha, p["doses"], p["n_sets"]),
        *anchors.family_trials(nb, sets, alpha, p["n_sets"]),
        *(trial for asked in beyond_trials(nb, chosen, n_test).values() for trial in asked),
        *extended_trials(nb, chosen, n_test),
        *pictures.perturbed_trials(nb, chosen, n_test),
        *gating.curve_trials(nb, p["gate_alphas"], n),
    ]
    _, strengths = gating.gate_curves(nb, chosen, p["gate_alphas"], n)
    yield gating.test_trials(nb, strengths, n_test)[1]


STUDIES: dict[str, Study] = {
    "01": gap.trials,
    "02": nothing,
    "03": intervention.trials,
    "04": evaluation.trials,
    "05": evaluation.trials,
    "06": comparison.trials,
    "07": ablations.trials,
    "08": open_questions,
}
"""By notebook. A list may need the responses to those before it."""
