"""Notebook 09: its trials, of the parts that have files of their own."""

from collections.abc import Iterator, Mapping
from typing import Any

from cmrm_utils.studies import anchors, gating, pictures, sweep
from cmrm_utils.studies.abilities import beyond_trials, extended_trials
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial


def trials(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """09: but for the adversarial pictures, which are searched where the notebook runs."""
    nb.vlm.check_sees_images()
    n, n_test = p["n_validation"], p["n_test"]
    methods, plain = sweep.levels(nb, p["alphas"]), sweep.validation(nb, n)
    yield sweep.sweep_trials(nb, methods, plain)
    chosen = sweep.choose(nb, methods, plain)
    alpha = chosen.alphas["CMRM dataset"]
    sets = anchors.anchor_sets(nb, sizes=p["sizes"], draws=p["draws"])
    yield [
        *anchors.anchor_trials(nb, sets, alpha, p["doses"], p["n_sets"]),
        *anchors.family_trials(nb, sets, alpha, p["n_sets"]),
        *(trial for these in beyond_trials(nb, chosen, n_test).values() for trial in these),
        *extended_trials(nb, chosen, n_test),
        *pictures.perturbed_trials(nb, chosen, n_test),
        *gating.curve_trials(nb, p["gate_alphas"], n),
    ]
    _, strengths = gating.gate_curves(nb, chosen, p["gate_alphas"], n)
    yield gating.test_trials(nb, strengths, n_test)[1]
