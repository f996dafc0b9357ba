"""Notebook 03's examples: of all responses, refusals alone are shown."""

from types import SimpleNamespace

import pandas as pd

from cmrm_utils import Sample
from cmrm_utils.studies.intervention import responses_beside


def test_only_refusals_are_shown():
    rows = pd.DataFrame(
        {
            "task": ["harmful", "harmful", "benign"],
            "outcome": ["refused", "complied", "complied"],
            "response": ["I can't.", "First, do this", "Leave a tenth of the bill on the table"],
            "exact": None,
        }
    )
    asked = []
    nb = SimpleNamespace(ask=lambda trials: asked.append([t.image for t in trials]) or rows)
    samples = [Sample(str(i), f"query {i}?") for i in range(3)]
    shown = responses_beside(nb, samples, {"text": ("none", None), "blank": ("blank", None)})
    assert asked == [["none"] * 3, ["blank"] * 3]
    assert shown.text["blank"].tolist() == ["I can't.", "(answered)", "(answered)"]
    for words in ("do this", "tenth"):
        assert words not in shown._repr_html_() + repr(shown)
    assert "query 1?" in shown._repr_html_()
