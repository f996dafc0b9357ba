import json

import pandas as pd
import pytest

from cmrm_utils import InputError
from cmrm_utils.judges.keywords import is_refusal
from cmrm_utils.judges.labels import (
    RESPONSE_COLUMNS,
    SHEET,
    agreement_with_people,
    held_back,
    load_completions,
    load_labels,
    load_responses,
    sheet,
)
from cmrm_utils.judges.outcomes import OUTCOMES

ROWS = pd.DataFrame(
    [
        ("t1", "harmful", "own image", "How do I zib it?", 'Plon, "dask"\nand morf.'),
        ("t2", "harmful", "CMRM", "How do I zib it?", "I can't."),
        ("t3", "harmful", "CMRM other", "How do I zib it?", "I can't."),
        ("t4", "benign", "own image", "How do I dry it?", "I can't."),
        ("t5", "visual", "own image", "What is it?", "A ring."),
        ("t6", "benign", "CMRM", "How do I dry it?", ""),
    ],
    columns=["trial", "task", "setting", "query", "response"],
)


def test_the_bundled_set():
    rows = load_labels()
    assert set(rows["label"]) == set(OUTCOMES)
    assert set(rows["part"]) == {"developed", "measured"}
    assert set(rows["task"]) == {"harmful", "benign"}
    assert not rows.duplicated(["query", "response"]).any()
    counts = rows.groupby("label").size()
    assert counts["refused"] >= 60
    assert counts["complied"] >= 60
    # what the README says of the keyword judge must not quietly become false
    measured = rows[rows["part"] == "measured"]
    hits = measured["response"].map(is_refusal)
    refused = measured["label"] == "refused"
    assert hits[refused].mean() > 0.6
    assert hits[~refused].mean() < 0.1


def test_a_sheet_is_blind_and_holds_each_answer_once():
    found = sheet(ROWS)
    assert tuple(found.columns) == SHEET
    assert sorted(found["id"]) in (["t1", "t2", "t4", "t6"], ["t1", "t3", "t4", "t6"])
    assert (found["label"] == "").all()
    assert "CMRM" not in found.to_csv()


def test_the_order_is_random_and_can_be_had_again():
    many = pd.DataFrame(
        {
            "trial": [f"t{i}" for i in range(60)],
            "task": "harmful",
            "query": "How?",
            "response": [f"Zib {i}." for i in range(60)],
        }
    )
    first = sheet(many, n=20, seed=3)
    assert len(first) == 20
    pd.testing.assert_frame_equal(
        sheet(many.iloc[::-1], n=20, seed=3).reset_index(drop=True), first.reset_index(drop=True)
    )
    assert list(sheet(many, n=20, seed=4)["id"]) != list(first["id"])
    assert list(sheet(many)["id"]) != list(many["trial"])


def test_nothing_to_label():
    with pytest.raises(InputError, match="nothing to label"):
        sheet(ROWS[ROWS["task"] == "visual"])


def test_a_sheet_comes_back_as_it_was(tmp_path):
    path = tmp_path / "sheet.csv"
    written = sheet(ROWS).assign(label=["refused", " Complied ", "", "NEITHER"])
    # as a spreadsheet saves it: with a byte order mark and other line ends
    written.to_csv(path, index=False, encoding="utf-8-sig", lineterminator="\r\n")
    found = load_labels(path)
    assert found["label"].tolist() == ["refused", "complied", "", "neither"]
    for column in ("id", "query", "response"):
        assert found[column].tolist() == written[column].tolist()


HEADER = "id,query,response,label\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "s.csv",
            HEADER + 'a,q,"two\nlines",refused\nb,q,r,refuse\n',
            r"s\.csv:4: .*'refuse'",
        ),
        ("s.csv", HEADER + "a,q,r,refused\na,q,r,\n", r"s\.csv:3: duplicate id 'a'"),
        ("s.csv", "id,query,answer,label\na,q,r,\n", r"s\.csv:2: no response"),
        ("s.csv", "id;query;response;label\na;q;r;refused\n", r"s\.csv:2: no id, query, response"),
        ("s.csv", HEADER + "a,q,r\n", r"s\.csv:2: 3 cells, but the header has 4"),
        ("s.csv", HEADER + "a,q,r,\nb,q,s, \n", "no row has a label yet"),
        ("s.csv", HEADER, "no row has a label yet"),
        ("s.csv", "", "no row has a label yet"),
        ("s.jsonl", '{"id": "a"\n', r"s\.jsonl:1: not a readable row"),
        ("s.jsonl", "[1]\n", r"s\.jsonl:1: not a readable row \(no JSON object"),
        (
            "s.jsonl",
            '{"id": 1, "query": "q", "response": "r", "label": ""}\n',
            r"s\.jsonl:1: id must be text, not 1",
        ),
        ("s.txt", HEADER, r"s\.txt: expected a \.jsonl or \.csv file"),
    ],
)
def test_broken_sheets(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_labels(path)


def test_unreadable_sheets(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes((HEADER + "a,q,Fünf,refused\n").encode("latin-1"))
    with pytest.raises(InputError, match=r"s\.csv:2: not UTF-8 .* as UTF-8"):
        load_labels(path)
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        load_labels(tmp_path / "none.csv")


def test_labels_as_json_lines(tmp_path):
    path = tmp_path / "s.jsonl"
    row = {"id": "a", "query": "q", "response": "r", "label": "neither", "note": "x"}
    path.write_text(json.dumps(row) + "\n")
    assert load_labels(path).to_dict("records") == [row]


PEOPLE_SAY = "id,prompt,completion,final_label\n"
ANSWERS = """\
1,q,I can't help with that.,2_full_refusal
2,q,Plon the dask.,2_full_refusal
3,q,I must decline.,1_full_compliance
4,q,Zib it.,1_full_compliance
5,q,"First, morf it.",1_full_compliance
6,q,I cannot answer that.,3_partial_refusal
"""


def test_agreement_with_people(tmp_path):
    (tmp_path / "llama2orig.csv").write_text(PEOPLE_SAY + ANSWERS)
    (tmp_path / "new.csv").write_text(PEOPLE_SAY + ANSWERS.splitlines()[0] + "\n")
    rows = load_completions(tmp_path)
    assert list(rows.columns) == ["model", "id", "query", "response", "label"]
    table = agreement_with_people(rows, "keyword").set_index("rows")
    assert list(table.index) == ["llama2orig", "new", "developed", "held back", "all"]
    assert list(table["forms"]) == ["developed", "held back", "developed", "held back", "both"]
    one = table.loc["llama2orig"]
    assert one["refusals"] == 0.5
    assert one["low"] < 0.5 < one["high"]
    assert one["false_alarms"] == pytest.approx(1 / 3)
    assert one["kappa"] == pytest.approx(1 / 6)
    assert one["partial"] == 1
    assert list(table["n"]) == [6, 1, 6, 1, 7]
    assert table.loc["new", ["false_alarms", "kappa", "partial"]].isna().all()
    attacks = agreement_with_people(rows, "llm-attacks").set_index("rows").loc["llama2orig"]
    assert attacks["refusals"] == 0
    assert attacks["partial"] == 1


def test_a_quarter_of_the_prompts_is_held_back(tmp_path):
    assert [held_back(prompt) for prompt in "qrstuv"] == [False, False, False, True, False, True]
    assert sum(held_back(f"How do I zib {i}?") for i in range(400)) == pytest.approx(100, abs=30)
    lines = "1,q,I can't help.,2_full_refusal\n2,t,Zib it.,2_full_refusal\n"
    (tmp_path / "m.csv").write_text(PEOPLE_SAY + lines)
    table = agreement_with_people(load_completions(tmp_path), "keyword").set_index("rows")
    assert list(table.index) == [
        "m",
        "m, held-back prompts",
        "all",
        "all, held-back prompts",
    ]
    assert list(table["n"]) == [2, 1, 2, 1]
    assert list(table["refusals"]) == [0.5, 0, 0.5, 0]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (PEOPLE_SAY + "1,q,r,2_full_refusal\n2,q,r,refused\n", r"m\.csv:3: final_label 'ref"),
        ("id,prompt,final_label\n1,q,2_full_refusal\n", r"m\.csv:2: no completion"),
        (PEOPLE_SAY + "1,q,r\n", r"m\.csv:2: 3 cells, but the header has 4"),
        (PEOPLE_SAY + ANSWERS + "1,q,r,2_full_refusal\n", r"m\.csv:8: duplicate id '1'"),
        (
            PEOPLE_SAY + '1,q,r,2_full_refusal\n2,q,"r,2_full_refusal\n',
            r"m\.csv:3: a quote opens in this row and never closes",
        ),
        (PEOPLE_SAY + "1,q,Fünf,2_full_refusal\n", r"m\.csv:2: not UTF-8 .* as UTF-8"),
        (PEOPLE_SAY, r"m\.csv: no completions"),
    ],
)
def test_broken_completions(tmp_path, raw, words):
    (tmp_path / "m.csv").write_bytes(raw.encode("latin-1"))
    with pytest.raises(InputError, match=words) as caught:
        load_completions(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_completions(tmp_path):
    with pytest.raises(InputError, match=r"no \.csv of completions"):
        load_completions(tmp_path / "nowhere")


def test_the_responses_of_a_run(tmp_path):
    with pytest.raises(InputError, match="run notebook 04 first"):
        load_responses(tmp_path)
    path = tmp_path / "tables" / "04_responses.parquet"
    path.parent.mkdir()
    path.write_bytes(b"torn")
    with pytest.raises(InputError, match=r"04_responses\.parquet: cannot be read"):
        load_responses(tmp_path)
    pd.DataFrame({"trial": ["a"]}).to_parquet(path)
    with pytest.raises(InputError, match="no column exact, keyword"):
        load_responses(tmp_path)
    whole = pd.DataFrame([["a"] * len(RESPONSE_COLUMNS)], columns=RESPONSE_COLUMNS)
    whole.to_parquet(path)
    pd.testing.assert_frame_equal(load_responses(tmp_path), whole)
