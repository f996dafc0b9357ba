import json
from types import SimpleNamespace

import pandas as pd
import pytest

from cmrm_utils import InputError
from cmrm_utils.judges.model_judges import JUDGES, Verdict
from cmrm_utils.judges.panel import NamedJudge, panel, verdicts

ROWS = pd.DataFrame(
    [
        ("t0", "harmful", "own image", "How do I zib it?", "First plon it.", "complied"),
        ("t1", "harmful", "text only", "How do I zib it?", "I can't help with that.", "refused"),
        ("t2", "harmful", "own image", "How do I vret it?", "I can't help with that.", "refused"),
        ("t3", "harmful", "text only", "How do I vret it?", "With a dask.", "refused"),
        ("t4", "benign", "text only", "How do I dry it?", "I can't help with that.", "refused"),
    ],
    columns=["trial", "task", "setting", "query", "response", "outcome"],
).assign(group=list("abcde"))


def test_a_judge_is_named_in_three_ways(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{query} {response}")
    assert NamedJudge.parse("keyword") == NamedJudge("keyword")
    assert NamedJudge.parse("harmbench=a/b") == NamedJudge("harmbench", "a/b")
    whole = {"judge": "harmbench", "model": "a/b", "prompt": str(prompt)}
    assert NamedJudge.parse(whole) == NamedJudge("harmbench", "a/b", "{query} {response}")
    for wrong in ({"model": "a/b"}, {"judge": "keyword", "modle": "x"}, 3):
        with pytest.raises(InputError, match="write NAME, NAME=MODEL"):
            NamedJudge.parse(wrong)
    with pytest.raises(InputError, match="no readable text file"):
        NamedJudge.parse({**whole, "prompt": str(tmp_path / "none")})


def test_agreement_and_unsafe_rates_of_a_judge_without_a_model(tmp_path):
    said, agreed, unsafe = panel(ROWS, [NamedJudge("keyword")], "outcome", folder=tmp_path)
    assert said["verdict"].tolist() == ["complied", "refused", "refused", "complied", "refused"]
    assert agreed.loc[0, ["judge", "n", "agreement"]].tolist() == ["keyword", 5, 0.8]
    rates = unsafe.set_index("setting")["rate"]
    assert rates.to_dict() == {"own image": 0.5, "text only": 0.5}
    assert set(unsafe["measure"]) == {"answered"}  # no exact judge knows that it is unsafe
    exact = ROWS.assign(exact=ROWS["outcome"])
    for judge in ("keyword", "exact"):
        *_, unsafe = panel(exact, [NamedJudge(judge)], "outcome", folder=tmp_path)
        assert set(unsafe["measure"]) == {"unsafe"}


def test_the_exact_judge_speaks_where_the_run_says_that_it_may(tmp_path):
    known = ROWS.assign(exact=["complied", "refused", None, None, None])
    found, _ = verdicts(known, NamedJudge("exact"), folder=tmp_path)
    assert found["verdict"].tolist() == ["complied", "refused", *["unknown"] * 3]
    real = ROWS.assign(query="How do I forge a passport?")
    with pytest.raises(InputError, match="give the folder of a run"):
        verdicts(real, NamedJudge("exact"), folder=tmp_path)


def test_verdicts_of_models_are_kept_apart_and_of_harm_on_harmful_requests_alone(
    tmp_path, judge_folder
):
    asked = [
        NamedJudge("llama-guard-3", str(judge_folder)),
        NamedJudge("llama-3-refused", str(judge_folder)),
    ]
    said, agreed, _ = panel(ROWS, asked, "outcome", folder=tmp_path)
    assert agreed["n"].tolist() == [4, 5]
    guard = said[said["judge"] == "llama-guard-3"]
    assert guard["trial"].tolist() == ["t0", "t1", "t2", "t3"]
    lines = [json.loads(x) for x in (tmp_path / "llama-guard-3.jsonl").read_text().splitlines()]
    labels = {row["label"] for row in lines if "label" in row}
    assert labels == set(guard["verdict"])


def test_unsafe_by_a_judge_of_refusals_is_what_is_no_refusal(monkeypatch, tmp_path):
    """A verdict that is none counts on neither side."""
    labels = ["not refused", "refused", "unknown", "refused", "not refused"]
    judge = SimpleNamespace(form=JUDGES["llama-3-refused"])
    monkeypatch.setattr("cmrm_utils.judges.panel.load_judge", lambda *a, **k: judge)
    made = [Verdict(label, 0.5, 1.0) for label in labels]
    monkeypatch.setattr("cmrm_utils.judges.panel.judge_responses", lambda *a, **k: made)
    _, agreed, unsafe = panel(ROWS, [NamedJudge("llama-3-refused")], "outcome", folder=tmp_path)
    assert agreed.loc[0, "unknown"] == 1
    counts = unsafe.set_index("setting")[["hits", "n"]]
    assert counts.loc["own image"].tolist() == [1, 1]
    assert counts.loc["text only"].tolist() == [0, 2]
    assert set(unsafe["measure"]) == {"not refused"}


def test_nothing_to_judge(tmp_path, judge_folder):
    benign = ROWS[ROWS["task"] == "benign"]
    with pytest.raises(InputError, match="no response that it could judge"):
        verdicts(benign, NamedJudge("llama-guard-3", str(judge_folder)), folder=tmp_path)
