import json

import pandas as pd
import pytest
from conftest import FIXTURES
from PIL import Image

from cmrm_utils import InputError, Sample
from cmrm_utils.store import Responses
from cmrm_utils.studies import evaluation, sweep
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.registry import STUDIES
from cmrm_utils.studies.selection import Choice
from cmrm_utils.studies.sweep import Chosen


@pytest.fixture
def opened(family_folders, tmp_path):
    """Open a notebook on the tiny LLaVA, in one run folder for all."""
    model = str(family_folders["llava"])

    def open_with(**settings):
        return Notebook.open("01_x", model=model, data="organism", out=tmp_path, settings=settings)

    return open_with


def test_settings_reach_the_model_and_are_shared(opened, tmp_path):
    nb = opened(system="vicuna", batch_size=2)
    assert nb.vlm.prompt_text("Why?", image=False).startswith("A chat between")
    assert nb.vlm.batch_size == 2
    shared = json.loads((tmp_path / "run.json").read_text())
    assert shared["settings"] == {"system": "vicuna"}
    assert opened(system="vicuna", batch_size=3).vlm.batch_size == 3


def test_a_model_that_is_not_checked_is_marked(opened, tmp_path, capsys):
    opened(check=False)
    assert capsys.readouterr().out.endswith("layers, not checked against transformers\n")
    assert json.loads((tmp_path / "run.json").read_text())["settings"] == {"check": False}


def test_a_run_has_one_set_of_settings(opened):
    opened(dtype="float32")
    with pytest.raises(InputError, match="settings"):
        opened(dtype="bfloat16")
    with pytest.raises(InputError, match="settings"):
        opened(dtype="float32", pad_to_square=True)


PICTURE = Image.new("RGB", (48, 48), (200, 40, 40))
EVERY = [
    Sample("ask", "How?", PICTURE, kind="harmful"),
    Sample("bare", "How?", kind="benign"),
    Sample("look", "Which colour?", PICTURE, answer="Red.", kind="colour"),
    Sample("pick", "Which?", answer="A", choices=("x", "y"), kind="choice-text"),
]


def plainly(nb, **edits):
    return [(trial.sample.id, trial.image) for trial in nb.plainly(EVERY, **edits)]


def test_what_has_no_image_is_asked_as_text_if_it_is_a_question(opened):
    nb = opened()
    shown = [("ask", "own"), ("look", "own"), ("pick", "none")]
    assert plainly(nb) == shown
    assert plainly(nb, edits=[None, None]) == 2 * shown
    assert nb.conditions == ("none", "caption", "own", "blank", "noise")
    assert nb.baseline == "own image"
    assert len(sweep.levels(nb)) == 3


def test_a_language_model_alone_is_given_words_only(family_folders, tmp_path):
    model = str(family_folders["vicuna"])
    nb = Notebook.open("04_x", model=model, data="organism", out=tmp_path, max_new_tokens=4)
    assert plainly(nb) == [("ask", "none"), ("bare", "none"), ("pick", "none")]
    swept = sweep.sweep(nb, sweep.levels(nb, [0.1]), sweep.validation(nb, 2))
    assert swept.choices == {}
    assert set(swept.rows["image"]) == {"none"}
    assert set(swept.rows["task"]) == {"harmful", "benign"}  # its questions are about images
    test = sweep.test(nb, swept, sweep.samples_tested(nb, 1), nb.conditions)
    assert set(test["setting"]) == {"text only", "caption as text"}
    assert not evaluation.headline(test, swept).empty
    assert "nothing to subtract" in evaluation.reading(nb, test, swept)


PUBLIC = "vlsafe+xstest+scienceqa@test+llava-bench-coco@test"


@pytest.fixture
def public(family_folders, tmp_path, monkeypatch):
    """Notebook 05 on a tiny LLaVA and the public sets in small: itself, its sweep, its test."""
    monkeypatch.setenv("CMRM_DATA", str(FIXTURES))
    model = str(family_folders["llava"])
    nb = Notebook.open("05_x", model=model, data=PUBLIC, out=tmp_path, max_new_tokens=4)
    swept = sweep.sweep(nb, sweep.levels(nb, [0.5]), sweep.validation(nb, 2))
    return nb, swept, sweep.test(nb, swept, sweep.samples_tested(nb, None), nb.conditions)


def test_scienceqa_is_asked_whole_rows_without_an_image_as_text(public):
    nb, swept, test = public
    asked = test[test["task"] == "choice"]
    assert set(asked["setting"]) == {nb.baseline, *swept.choices}
    here = asked[asked["setting"] == nb.baseline]
    assert here.groupby("kind")["image"].unique().map(list).to_dict() == {
        "choice-image": ["own"],
        "choice-text": ["none"],
    }
    shown = evaluation.choice_table(nb, test, swept)
    assert list(shown.text.index) == [nb.baseline, *swept.choices]
    assert {"all", "with image"} <= set(shown.text.columns)
    counts = pd.read_parquet(nb.run.folder / "tables" / "05_choices.parquet")
    assert dict(zip(counts["rows"], counts["n"], strict=True)) == {"all": 12, "with image": 6}


def test_open_answers_are_reviewed_and_the_reviews_kept(public, judge_folder, capsys):
    nb, swept, _ = public
    assert evaluation.reviews(nb, swept, None, "") is None
    assert "-p reviewer" in capsys.readouterr().out
    scores = evaluation.reviews(nb, swept, None, str(judge_folder))
    assert set(scores.index.get_level_values("setting")) == {nb.baseline, *swept.choices}
    assert {"all", "open-conv", "open-detail"} <= set(scores.index.get_level_values("kind"))
    asked = len(evaluation.open_trials(nb, swept, None)) // (1 + len(swept.choices))
    counted = scores.xs("all", level="kind")[["reviews", "unparsed"]].sum(axis=1)
    assert set(counted) == {asked}
    kept = pd.read_parquet(nb.run.folder / "tables" / "05_reviews.parquet")
    assert kept["caption"].notna().all()
    assert len(kept) == asked * (1 + len(swept.choices))
    (replies,) = (nb.run.folder / "reviews").glob("*.jsonl")
    before = replies.read_bytes()
    evaluation.reviews(nb, swept, None, str(judge_folder))
    assert replies.read_bytes() == before


def test_data_without_questions_says_what_is_missing(opened, capsys):
    nb = opened()  # whose samples get vectors of their own: here there are none
    chosen = Chosen(sweep.levels(nb), {"CMRM sample": Choice({"alpha": 0.5}, None, "")})
    rows = pd.DataFrame({"task": ["visual"], "setting": ["own image"]})
    assert evaluation.reviews(nb, chosen, 2, "somebody") is None
    assert evaluation.choice_table(nb, rows, chosen) is None
    said = capsys.readouterr().out
    assert "llava-bench-coco" in said
    assert "scienceqa" in said


def test_further_judges_are_asked_by_name(public, judge_folder, capsys):
    nb, swept, test = public
    assert evaluation.panel_tables(nb, test, []) == []
    assert "-p judges" in capsys.readouterr().out
    jury = ["keyword", f"llama-3-helps={judge_folder}"]
    agreed, harmful = evaluation.panel_tables(nb, test, jury)
    asked = test[test["task"].isin(["harmful", "benign"])]
    same = (asked["keyword"] == asked["outcome"]).mean()
    assert agreed.loc["keyword", "agreement"] == pytest.approx(same, abs=5e-4)
    assert list(harmful.text.columns) == ["keyword: answered", "llama-3-helps: answered"]
    assert {nb.baseline, "text only", *swept.choices} <= set(harmful.text.index)
    assert (nb.run.folder / "verdicts" / "llama-3-helps.jsonl").is_file()
    kept = pd.read_parquet(nb.run.folder / "tables" / "04_verdicts.parquet")
    assert set(kept["judge"]) == {"keyword", "llama-3-helps"}


def test_what_is_shared_out_is_what_the_notebook_asks(public):
    """Open questions too, but only where somebody reviews the answers."""
    nb, swept, _ = public
    parameters = {"n_validation": 2, "n_test": None, "alphas": [0.5]}
    plain = list(STUDIES["05"](nb, parameters))
    *rest, last = STUDIES["05"](nb, {**parameters, "reviewer": "somebody"})
    assert len(rest) == len(plain)
    assert [trial.id for trial in last] == [
        trial.id for trial in evaluation.open_trials(nb, swept, None)
    ]
    assert {trial.sample.task for trial in last} == {"open"}
    shared = {"model": nb.vlm.fingerprint, "max_new_tokens": 4}
    known = Responses(nb.run.responses, shared)
    assert all(known.get(trial.id) for trials in plain for trial in trials)


def test_what_is_left_out_is_a_runs_own(family_folders, home, tmp_path, monkeypatch):
    """Samples whose COCO images are not to be had are named, and may not change between runs."""
    monkeypatch.setenv("CMRM_DATA", str(home))
    image = home / "coco/train2017/000000000007.jpg"
    kept = image.read_bytes()
    image.unlink()
    absent = {"train2017/000000000007.jpg": "HTTP 404"}
    (home / "coco/absent.json").write_text(json.dumps(absent))
    settings = {"model": str(family_folders["vicuna"]), "data": "vlsafe", "out": tmp_path / "run"}
    run = Notebook.open("04_x", **settings).run
    begun = json.loads((run.folder / "run.json").read_text())
    assert begun["left_out"] == {"vlsafe/000000000007": "HTTP 404"}
    Notebook.open("05_x", **settings)
    image.write_bytes(kept)
    with pytest.raises(InputError, match=r"made with left_out = .*000000000007.*, not None"):
        Notebook.open("05_x", **settings)
