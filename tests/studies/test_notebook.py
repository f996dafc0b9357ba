import json
import time
from dataclasses import replace

import pandas as pd
import pytest
from cmrm_utils.studies.lists import EXPERIMENTS
from conftest import FIXTURES
from PIL import Image

from cmrm_utils import InputError, Sample
from cmrm_utils.studies import notebook
from cmrm_utils.studies.notebook import Notebook, Sweep


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


def test_seconds_are_of_the_responses_that_were_made(opened, monkeypatch, capsys):
    """Of four benign requests two have an image and are asked, 0.02 seconds each."""
    nb, asked, clock = opened(), [], [0.0]
    some = [replace(EVERY[0], id=f"{i}", kind="benign") for i in range(2)]
    some += [replace(EVERY[1], id=f"bare {i}") for i in range(2)]
    monkeypatch.setattr(nb, "samples", lambda *_: some)

    def slow(vlm, trials, **_):
        asked.append(len(trials))
        clock[0] += 0.02 * len(trials)

    monkeypatch.setattr(notebook, "generate", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    swept = Sweep(pd.DataFrame(), pd.Series(), {}, None)
    seconds = nb.cost(swept, n=64)["seconds"]
    assert asked == [2, 2, 2]
    assert seconds["no edit"] == pytest.approx(0.02)
    del some[:2]
    assert nb.cost(swept)["seconds"].isna().all()
    assert "no response to time" in capsys.readouterr().out


def test_what_has_no_image_is_asked_as_text_if_it_is_a_question(opened):
    nb = opened()
    shown = [("ask", "own"), ("look", "own"), ("pick", "none")]
    assert plainly(nb) == shown
    assert plainly(nb, edits=[None, None]) == 2 * shown
    assert nb.conditions == ("none", "caption", "own", "blank", "noise")
    assert nb.baseline == "own image"
    assert len(nb.methods) == 3


def test_a_language_model_alone_is_given_words_only(family_folders, tmp_path):
    model = str(family_folders["vicuna"])
    nb = Notebook.open("04_x", model=model, data="organism", out=tmp_path, max_new_tokens=4)
    assert plainly(nb) == [("ask", "none"), ("bare", "none"), ("pick", "none")]
    swept = nb.sweep([0.1], 2)
    assert swept.edited == []
    assert set(swept.rows["image"]) == {"none"}
    assert set(swept.rows["task"]) == {"harmful", "benign"}  # its questions are about images
    test = nb.test(1, swept)
    assert set(test["setting"]) == {"text only", "caption as text"}
    assert not nb.headline(test, swept).empty
    assert "nothing to subtract" in nb.reading(test, swept)


PUBLIC = "vlsafe+xstest+scienceqa@test+llava-bench-coco@test"


@pytest.fixture
def public(family_folders, tmp_path, monkeypatch):
    """Notebook 05 on a tiny LLaVA and the public sets in small: itself, its sweep, its test."""
    monkeypatch.setenv("CMRM_DATA", str(FIXTURES))
    model = str(family_folders["llava"])
    nb = Notebook.open("05_x", model=model, data=PUBLIC, out=tmp_path, max_new_tokens=4)
    swept = nb.sweep([0.5], 2)
    return nb, swept, nb.test(None, swept)


def test_scienceqa_is_asked_whole_rows_without_an_image_as_text(public):
    nb, swept, test = public
    asked = test[test["task"] == "choice"]
    assert set(asked["setting"]) == {nb.baseline, *swept.edited}
    here = asked[asked["setting"] == nb.baseline]
    assert here.groupby("kind")["image"].unique().map(list).to_dict() == {
        "choice-image": ["own"],
        "choice-text": ["none"],
    }
    shown = nb.choices(test)
    assert list(shown.index) == [nb.baseline, *swept.edited]
    assert shown.loc[nb.baseline, "all"].endswith("/12)")
    assert shown.loc[nb.baseline, "with image"].endswith("/6)")


def test_open_answers_are_reviewed_and_the_reviews_kept(public, judge_folder, capsys):
    nb, swept, _ = public
    assert nb.reviews(None, swept, "") is None
    assert "-p reviewer" in capsys.readouterr().out
    scores = nb.reviews(None, swept, str(judge_folder))
    assert set(scores.index.get_level_values("setting")) == {nb.baseline, *swept.edited}
    assert {"all", "open-conv", "open-detail"} <= set(scores.index.get_level_values("kind"))
    asked = len(nb.open_trials(None, swept)) // (1 + len(swept.edited))
    counted = scores.xs("all", level="kind")[["reviews", "unparsed"]].sum(axis=1)
    assert set(counted) == {asked}
    kept = pd.read_parquet(nb.run.folder / "tables" / "05_reviews.parquet")
    assert kept["caption"].notna().all()
    assert len(kept) == asked * (1 + len(swept.edited))
    (replies,) = (nb.run.folder / "reviews").glob("*.jsonl")
    before = replies.read_bytes()
    nb.reviews(None, swept, str(judge_folder))
    assert replies.read_bytes() == before


def test_data_without_questions_says_what_is_missing(opened, capsys):
    nb = opened()
    swept = Sweep(pd.DataFrame(), pd.Series(dtype=float), {}, None)
    assert nb.reviews(2, swept, "somebody") is None
    assert nb.choices(pd.DataFrame({"task": ["visual"], "setting": ["own image"]})) is None
    said = capsys.readouterr().out
    assert "llava-bench-coco" in said
    assert "scienceqa" in said


def test_further_judges_are_asked_by_name(public, judge_folder, capsys):
    nb, swept, test = public
    assert nb.panel(test, []) == []
    assert "-p judges" in capsys.readouterr().out
    agreed, unsafe = nb.panel(test, ["keyword", f"llama-3-helps={judge_folder}"])
    asked = test[test["task"].isin(["harmful", "benign"])]
    same = (asked["keyword"] == asked["outcome"]).mean()
    assert agreed.loc["keyword", "agreement"] == pytest.approx(same, abs=5e-4)
    assert list(unsafe.columns) == ["keyword", "llama-3-helps"]
    assert {nb.baseline, "text only", *swept.edited} <= set(unsafe.index)
    assert (nb.run.folder / "verdicts" / "llama-3-helps.jsonl").is_file()
    kept = pd.read_parquet(nb.run.folder / "tables" / "04_verdicts.parquet")
    assert set(kept["judge"]) == {"keyword", "llama-3-helps"}


def test_what_is_shared_out_is_what_the_notebook_asks(public):
    """Open questions too, but only where somebody reviews the answers."""
    nb, swept, _ = public
    parameters = {"n": 2, "n_test": None, "alphas": [0.5]}
    plain = list(EXPERIMENTS["05"](nb, parameters))
    *rest, last = EXPERIMENTS["05"](nb, {**parameters, "reviewer": "somebody"})
    assert len(rest) == len(plain)
    assert [trial.id for trial in last] == [trial.id for trial in nb.open_trials(None, swept)]
    assert {trial.sample.task for trial in last} == {"open"}
    known = nb._responses(nb.run.responses)
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
