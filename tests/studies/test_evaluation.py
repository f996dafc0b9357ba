"""Notebook 04's tables: outcomes by their names, and a run beside the stored one."""

import pandas as pd
import pytest

from cmrm_utils.studies import evaluation

COLUMNS = ["setting", "alpha", "kind", "measure", "rate", "low", "high"]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A stored table of two models, one of them ours."""
    rows = [
        ("text only", 0.0, "harmful", "refused", 0.9, 0.85, 0.95, "ours"),
        ("own image", 0.0, "harmful", "refused", 0.8, 0.75, 0.85, "ours"),
        ("CMRM dataset", 0.05, "harmful", "refused", 0.8, 0.75, 0.85, "ours"),
        ("text only", 0.0, "harmful", "refused", 0.1, 0.05, 0.15, "theirs"),
    ]
    pd.DataFrame(rows, columns=[*COLUMNS, "model"]).to_csv(tmp_path / "smollm2_test.csv")
    monkeypatch.setattr(evaluation, "STORED", tmp_path)


def test_a_test_stands_beside_the_stored_one_of_its_model(stored):
    rows = pd.DataFrame(
        [
            ("text only", 0.0, "harmful", "refused", 0.7, 0.6, 0.86),
            ("own image", 0.0, "harmful", "refused", 0.95, 0.9, 1.0),
            ("CMRM dataset", 0.2, "harmful", "refused", 0.5, 0.4, 0.6),
        ],
        columns=COLUMNS,
    )
    found = evaluation.beside_stored(rows, "ours").set_index("setting")
    assert found["overlap"].to_dict() == {"text only": True, "own image": False}
    assert not found["inside"].any()  # 0.7 is below 0.85, though the intervals meet
    assert evaluation.beside_stored(rows.assign(rate=0.85), "ours")["inside"].all()
    assert found.loc["text only", "rate stored"] == 0.9
    assert evaluation.beside_stored(rows, "nobody's").empty


def test_outcomes_are_broken_or_answered_where_no_exact_judge_knows_them():
    assert evaluation.outcome_words(pd.DataFrame({"exact": [None, "refused"]})) == {}
    words = evaluation.outcome_words(pd.DataFrame({"exact": [None, None]}))
    assert words == {"complied": "answered", "neither": "broken"}
