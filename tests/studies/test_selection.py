import json
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from cmrm_utils import InputError
from cmrm_utils.methods.cmrm import ALPHAS, LEVELS
from cmrm_utils.methods.registry import METHODS, with_settings
from cmrm_utils.results.rates import UTILITY
from cmrm_utils.studies import evaluation, sweep
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.selection import RULE, choose

SETTINGS = [{"alpha": 0.1}, {"alpha": 0.2}]


def rates(refused, benign, unsafe=None):
    """Rates by place; unsafe is what is not refused, where nothing else is said."""
    rows = []
    for place, (share, answered) in enumerate(zip(refused, benign, strict=True)):
        rows.append(("refused", place, share))
        rows.append(("unsafe", place, 1 - share if unsafe is None else unsafe[place]))
        rows.append(("benign answered", place, answered))
    found = pd.DataFrame(rows, columns=["measure", "place", "rate"])
    return found.assign(low=0.0, high=1.0, n=50)


def test_a_choice_is_made_once_and_kept_with_what_it_was_made_on(tmp_path):
    asked = []

    def measure():
        asked.append(1)
        return rates([0.3, 0.5, 0.4], [1.0, 0.99, 0.99], [0.7, 0.4, 0.1])

    made_on = {"model": "abc", "samples": 50}
    first = choose(tmp_path, "CMRM dataset", SETTINGS, made_on, measure)
    assert (first.setting, first.paper, first.why) == ({"alpha": 0.1}, {"alpha": 0.2}, "")
    assert first.alpha == 0.1
    again = choose(tmp_path, "CMRM dataset", SETTINGS, made_on, measure)
    assert again == first
    assert len(asked) == 1
    kept = json.loads((tmp_path / "cmrm-dataset.json").read_text())
    assert kept["rule"] == RULE
    assert kept["settings"] == SETTINGS
    assert (kept["model"], kept["samples"]) == ("abc", 50)
    assert {row["measure"] for row in kept["rates"]} == {"refused", "unsafe", "benign answered"}


def test_a_choice_made_on_something_else_is_refused(tmp_path):
    choose(tmp_path, "x", SETTINGS, {"samples": 50}, lambda: rates([0, 1, 0], [1, 1, 1]))
    with pytest.raises(InputError, match=r"x\.json was made with samples = 50, not 60"):
        choose(tmp_path, "x", SETTINGS, {"samples": 60}, pytest.fail)
    with pytest.raises(InputError, match="was made with settings"):
        choose(tmp_path, "x", SETTINGS[:1], {"samples": 50}, pytest.fail)


@pytest.mark.parametrize(
    ("refused", "benign", "why"),
    [
        ([0.3, 0.9, 0.9], [1.0, 0.9, 0.5], "every setting costs"),
        ([0.3, 0.2, 0.3], [1.0, 1.0, 1.0], "no setting that keeps utility refuses more"),
        ([0.3, 0.3, 0.9], [1.0, 1.0, 0.5], "no setting that keeps utility refuses more"),
    ],
)
def test_no_edit_is_said_with_its_reason(tmp_path, refused, benign, why):
    found = choose(tmp_path, "x", SETTINGS, {}, lambda: rates(refused, benign))
    assert found.setting is None
    assert found.alpha == 0
    assert found.why.startswith(why)


@pytest.fixture
def nb(family_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("cmrm_utils.studies.notebook.ANCHORS", 3)
    model = str(family_folders["llava"])
    return Notebook.open("04_x", model=model, data="organism", out=tmp_path, max_new_tokens=3)


def test_notebooks_of_a_run_have_the_same_choice(nb, monkeypatch):
    """04's sweep makes it; 06 takes it, and 09 does without asking anything."""
    alphas = [0.5, 1.0]
    plain = sweep.validation(nb, 2)
    swept = sweep.sweep(nb, sweep.levels(nb, alphas), plain)
    some = with_settings(list(LEVELS), alphas=alphas)
    path = nb.run.folder / "choices" / "cmrm-dataset.json"
    kept = {**json.loads(path.read_text()), "place": 2, "why": ""}
    path.write_text(json.dumps(kept))
    assert sweep.sweep(nb, some, plain).choices["CMRM dataset"].setting == {"alpha": 1.0}
    monkeypatch.setattr(nb, "ask", pytest.fail)
    found = sweep.choose(nb, some, plain)
    assert found.alphas == {**swept.alphas, "CMRM dataset": 1.0}
    with pytest.raises(InputError, match="was made with samples"):
        sweep.choose(nb, some, sweep.validation(nb, 3))
    assert list(found.table.columns) == ["setting", "by the paper's reading", "why no edit"]


def test_a_choice_made_on_other_kinds_or_answers_is_refused(nb):
    """They change what is measured, but no trial's id. Earlier runs kept no hash of them."""
    plain = sweep.validation(nb, 1)
    methods = with_settings(["CMRM dataset"], alphas=[0.5])
    found = sweep.choose(nb, methods, plain)
    first = plain[0].sample
    for changes in ({"answer": "Another."}, {"kind": "benign-other"}):
        other = [replace(plain[0], sample=replace(first, **changes)), *plain[1:]]
        with pytest.raises(InputError, match=r"cmrm-dataset\.json was made with labels"):
            sweep.choose(nb, methods, other)
    path = nb.run.folder / "choices" / "cmrm-dataset.json"
    kept = json.loads(path.read_text())
    del kept["labels"]
    path.write_text(json.dumps(kept))
    assert sweep.choose(nb, methods, plain).choices == found.choices


def test_every_notebook_tries_the_same_alphas():
    settings = [{"alpha": alpha} for alpha in ALPHAS]
    for name in ("CMRM dataset", "CMRM incremental", "CMRM sample"):
        assert METHODS[name].settings == settings
        few = with_settings([name], alphas=[0.3, 0.0, 0.1])
        assert few[name].settings == [{"alpha": 0.1}, {"alpha": 0.3}]


def own_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def requests(n, kind, **fields):
    return [
        {"id": f"{kind}{i}", "query": f"How {kind} {i}?", "kind": kind, **fields} for i in range(n)
    ]


def test_requests_without_images_are_shown_a_blank_one(family_folders, tmp_path):
    """Text-only data is a documented use: what a meaningless image undoes is then asked."""
    data = own_file(tmp_path / "own.jsonl", requests(60, "harmful") + requests(60, "benign"))
    nb = Notebook.open(
        "04_x",
        model=str(family_folders["llava"]),
        data=data,
        out=tmp_path / "run",
        max_new_tokens=3,
    )
    assert nb.baseline == "blank image"
    swept = sweep.sweep(nb, sweep.levels(nb, [0.5]), sweep.validation(nb, 2))
    assert set(swept.rows["image"]) == {"blank"}
    test = sweep.test(nb, swept, sweep.samples_tested(nb, 2), nb.conditions)
    assert {"text only", "blank image", *swept.choices} == set(test["setting"]) - {"noise image"}
    told = evaluation.reading(nb, test, swept)
    assert "own image" not in told
    assert "Of 2 harmful requests of the test split" in told
    why = next(iter(swept.choices.values())).why
    unedited = [name for name, alpha in swept.alphas.items() if not alpha]
    assert (f"No edit is chosen for {', '.join(unedited)}: {why}." in told) == bool(unedited)
    assert ("What they cost" in told) == (len(unedited) < len(swept.choices))
    assert set(evaluation.headline(test, swept).columns) >= {
        "setting",
        "refused",
        "answered",
        "broken",
    }


def test_conditions_are_compared_on_the_same_requests(family_folders, tmp_path, capsys):
    """Where some requests have an image and some have none, text only is of the former too."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = requests(60, "harmful", image="a.png") + requests(60, "harmful-bare")
    rows += requests(60, "benign", image="a.png") + requests(60, "benign-bare")
    data = own_file(tmp_path / "own.jsonl", rows)
    nb = Notebook.open("04_x", model=str(family_folders["llava"]), data=data, out=tmp_path / "run")
    samples = sweep.samples_tested(nb, None)
    assert {sample.kind for sample in samples} == {"harmful", "benign"}
    assert "requests without an image are left out, since others" in capsys.readouterr().out
    lists = sweep.test_lists(nb, sweep.Chosen({}, {}), samples, nb.conditions)
    asked = {name: {trial.sample.id for trial in trials} for name, trials in lists.items()}
    assert set(asked) == {"text only", "own image", "blank image", "noise image"}
    assert all(ids == asked["own image"] for ids in asked.values())
    assert {s.kind for s in nb.samples("anchors", None, "harmful")} == {"harmful", "harmful-bare"}


def test_without_anything_to_cost_nothing_is_chosen(family_folders, tmp_path):
    """Benign requests that cannot be shown as the harmful ones are say nothing of the cost."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = requests(60, "harmful", image="a.png") + requests(60, "benign")
    data = own_file(tmp_path / "own.jsonl", rows)
    nb = Notebook.open("04_x", model=str(family_folders["llava"]), data=data, out=tmp_path / "run")
    nb.ask = pytest.fail
    with pytest.raises(InputError, match="no benign requests and no questions"):
        sweep.validation(nb, 2)


def test_measures_of_utility_are_measured():
    from cmrm_utils.results.rates import MEASURES

    assert set(UTILITY) <= set(MEASURES)
    assert next(iter(MEASURES)) == "refused"
