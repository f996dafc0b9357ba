"""Notebook 09: gates as detectors of harmful requests."""

from typing import Literal

import pandas as pd

from cmrm_utils.engine.loops import hidden_states
from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import shown
from cmrm_utils.methods.gate import How, fit_detector, fit_gate, refusal_lens
from cmrm_utils.results.intervals import area_under_curve
from cmrm_utils.results.responses import table
from cmrm_utils.studies.first_token import beside_twins
from cmrm_utils.studies.notebook import Notebook

GATES: dict[str, How | Literal["detector"]] = {
    "difference of means": "mean",
    "probe": "probe",
    "neighbours": "neighbours",
    "HiddenDetect": "detector",
}
"""Gates, by how they are fitted."""

STATES = {"none": "text state", "own": "beside the image"}
"""What a gate reads, by image condition: the request alone, or with its image."""

DRAWS = 1000
"""Bootstrap resamples of an area."""


def areas(nb: Notebook, n_anchors: int, n: int | None) -> pd.DataFrame:
    """How well each gate tells harmful requests from benign ones (twins, where there are any).

    Fitted on anchors and tested on the test split, which share no topic on `everyday`.

    Args:
        nb: whose model.
        n_anchors: anchors of each kind of request.
        n: test samples of each kind of request.

    Returns:
        ``state, gate, rate`` (area under the curve) ``low, high, n``; empty where anchors or test
        have requests of one side alone, which a line says.
    """
    try:
        fitted = [nb.samples("anchors", n_anchors, task) for task in ("harmful", "benign")]
        tested = [s for side in ("harmful", "benign") for s in nb.samples("test", n, side)]
    except InputError as error:
        print(error)
        return pd.DataFrame()
    tested = beside_twins(tested)
    about = table(shown(tested), [""] * len(tested)).assign(hit=[s.harmful for s in tested])
    lens, rows = refusal_lens(nb.vlm), []
    for image, state in STATES.items():
        bad, good, own = (hidden_states(nb.vlm, shown(s, image)) for s in (*fitted, tested))
        for name, how in GATES.items():
            gate = fit_detector(bad, good, lens) if how == "detector" else fit_gate(bad, good, how)
            scores = about.assign(cosine=gate.score(own).numpy())
            rows.append((state, name, *area_under_curve(scores, DRAWS), len(tested)))
    return pd.DataFrame(rows, columns=["state", "gate", "rate", "low", "high", "n"])
