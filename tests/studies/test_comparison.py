"""Methods side by side, and their sweep."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cmrm_utils import CMRM, InputError, Trial, load_vlm
from cmrm_utils.jobs.plan import plan
from cmrm_utils.judges.outcomes import judge
from cmrm_utils.methods.addition import refusal_addition
from cmrm_utils.methods.base import Method, edited
from cmrm_utils.methods.prompting import captioned
from cmrm_utils.methods.regap import ReGap, regained, text_mean
from cmrm_utils.methods.registry import METHODS, PUBLISHED, label, with_settings
from cmrm_utils.methods.shiftdc import ShiftDC, caption_safety, caption_shift
from cmrm_utils.methods.vlm_guard import VLMGuard, difference_directions, text_states
from cmrm_utils.prompts import CAPTION_QUERY
from cmrm_utils.results.responses import table
from cmrm_utils.store import Responses
from cmrm_utils.studies import comparison, sweep
from cmrm_utils.studies.first_token import FirstTokens
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.selection import Choice
from cmrm_utils.studies.sweep import NO_EDIT, Chosen
from cmrm_utils.vectors import extract_shift, refusal_direction

FEW = {
    "CMRM dataset": [{"alpha": 0.5}],
    "CMRM incremental": [{"alpha": 0.5}],
    "CMRM sample": [{"alpha": 0.5}, {"alpha": 1.0}],
    "ShiftDC": [{"layers": "all", "tokens": "last", "strength": 1.0}],
    "VLM-Guard": [{"m": 2, "ungated": "left", "alpha": 0.5}],
    "ASTRA": [{"depth": 0.5, "alpha": 2.0}],
    "SafeSteer": [{"gate": "none", "alpha": 0.5}],
    "ReGap-inspired": [{"first": 0.1, "alpha": 0.5}],
    "refusal addition": [{"depth": 0.67, "strength": 5.0}],
}


@pytest.fixture
def nb(family_folders, tmp_path, monkeypatch):
    """Notebook 06 on the tiny LLaVA, with few anchors."""
    monkeypatch.setattr("cmrm_utils.studies.notebook.ANCHORS", 3)
    monkeypatch.setattr("cmrm_utils.studies.attack.STEPS", 2)
    model = str(family_folders["llava"])
    return Notebook.open("06_x", model=model, data="organism", out=tmp_path, max_new_tokens=4)


def chosen_as(settings):
    """Methods as if these settings had been chosen."""
    choices = {name: Choice(setting, None, "") for name, setting in settings.items()}
    return Chosen(with_settings(list(settings), grids=FEW), choices)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ECSO"])
def test_a_method_edits_every_trial_in_every_setting(nb, name):
    plain = sweep.validation(nb, 2)
    method = with_settings([name], grids=FEW)[name]
    lists = sweep.settings_lists(nb, method, plain)
    assert len(lists) == len(FEW.get(name, METHODS[name].settings))
    seen = [tuple(trial.id for trial in plain)]
    for trials in lists:
        assert [trial.sample.id for trial in trials] == [trial.sample.id for trial in plain]
        seen.append(tuple(trial.id for trial in trials))
    assert len(set(seen)) == len(seen)  # no setting is another one, or none


def test_each_method_makes_its_edit(nb):
    plain = sweep.validation(nb, 2)
    samples = [trial.sample for trial in plain]
    bad, good = nb.anchors.harmful, nb.anchors.benign
    made = {
        name: sweep.settings_lists(nb, method, plain)[0]
        for name, method in with_settings(grids=FEW).items()
    }
    v, r = extract_shift(nb.vlm, bad), refusal_direction(nb.vlm, bad, good)
    readings = text_states(nb.vlm, samples)
    differences = difference_directions(nb.vlm, bad, good, 2)
    means = {"harmful": text_mean(nb.vlm, bad), "benign": text_mean(nb.vlm, good)}
    weights = regained(nb.vlm, plain, CMRM(v, 0.1, tokens="last"), **means)
    told = [captioned(these, nb.responses) for these in (samples, bad, good)]
    wanted = {
        "CMRM dataset": CMRM(v, 0.5),
        "CMRM incremental": CMRM(v.increments(), 0.5),
        "CMRM sample": CMRM(extract_shift(nb.vlm, samples, level="sample"), 0.5),
        "ShiftDC": ShiftDC(
            caption_shift(nb.vlm, told[0]),
            caption_safety(nb.vlm, *told[1:]),
            layers="all",
            tokens="last",
            strength=1.0,
        ),
        "VLM-Guard": VLMGuard(differences, readings, 0.5, ungated="left"),
        "ReGap-inspired": ReGap(v, r, weights, 0.5, first=0.1),
        "refusal addition": refusal_addition(r, int(0.67 * len(nb.vlm.layers)), 5.0),
    }
    for name, edit in wanted.items():
        for trial in made[name]:
            own = Trial(trial.sample, trial.image, edit).edit
            assert own is not None
            torch.testing.assert_close(trial.edit.added, own.added, rtol=1e-4, atol=1e-5)
            assert trial.edit.tokens == own.tokens


def test_images_that_benign_requests_lack_stop_no_method(nb, monkeypatch):
    def without(split, n, *tasks, given=nb.samples):
        return [s if s.harmful else replace(s, image=None) for s in given(split, n, *tasks)]

    monkeypatch.setattr(nb, "samples", without)
    plain = sweep.validation(nb, 2)
    harmful = sum(trial.sample.harmful for trial in plain)
    assert harmful
    for method in with_settings(grids=FEW).values():
        for trials in sweep.settings_lists(nb, method, plain):
            assert sum(trial.sample.harmful for trial in trials) == harmful


def test_where_no_benign_request_has_an_image_nothing_is_timed(nb, monkeypatch):
    def without(split, n, *tasks, given=nb.samples):
        return [replace(s, image=None) for s in given(split, n, *tasks)]

    chosen = chosen_as({"CMRM sample": {"alpha": 0.5}})
    monkeypatch.setattr(nb, "samples", without)
    found = sweep.cost(nb, chosen)
    assert list(found) == ["own image", "CMRM sample"]
    assert np.isnan(list(found.values())).all()


def test_every_preset_setting_can_be_made(nb):
    plain = sweep.validation(nb, 1)
    for method in METHODS.values():
        assert len(sweep.settings_lists(nb, method, plain)) == len(method.settings)


def test_each_model_is_asked_what_it_can_be(nb, capsys, monkeypatch):
    """The toy heeds no prompts; where no gradient reaches the picture there is no attack."""
    every = {**METHODS, **PUBLISHED}
    assert set(every) - set(comparison.compared(nb, [0.5], FEW)) == set(comparison.PROMPTED)
    assert "never taught to heed" in capsys.readouterr().out
    monkeypatch.setattr(nb, "data", "everyday")
    found = comparison.compared(nb, [0.5], FEW)
    assert set(found) == set(every)
    assert found["ShiftDC"].settings == FEW["ShiftDC"]

    def refuse(vlm):
        raise InputError("cuts pictures into tiles")

    monkeypatch.setattr(comparison, "check_searchable", refuse)
    assert set(every) - set(comparison.compared(nb, [0.5], FEW)) == {"ASTRA", "ASTRA, as published"}
    assert "ASTRA is left out: cuts pictures" in capsys.readouterr().out


def test_other_settings_are_taken_by_name():
    found = with_settings(grids=FEW)
    assert list(found) == list(METHODS)
    assert found["ShiftDC"].settings == FEW["ShiftDC"]
    assert found["safety prompt"] == METHODS["safety prompt"]
    with pytest.raises(InputError, match=r"no method 'CMRN'; .*there are CMRM dataset"):
        with_settings(grids={"CMRN": []})
    twice = [{"alpha": 0.1}, {"alpha": 0.3}, {"alpha": 0.10}]
    with pytest.raises(InputError, match=r"CMRM dataset: alpha 0\.1 is among the settings twice"):
        with_settings(grids={"CMRM dataset": twice})


def test_labels_say_every_setting():
    assert label({"m": 3, "ungated": "left", "alpha": 0.25}) == "m 3, ungated left, alpha 0.25"
    assert label({}) == "as is"


def scripted(monkeypatch, nb, unsafe, lost):
    """``ask`` as if each alpha had these shares of unsafe responses and lost answers."""

    def ask(trials):
        rows = table(trials, [""] * len(trials)).assign(outcome="refused", right=True)
        for alpha, part in rows.groupby("alpha"):
            for task, share, column, value in (
                ("harmful", unsafe[alpha], "outcome", "complied"),
                ("benign", lost[alpha], "right", False),
            ):
                index = part.index[part["task"] == task]
                rows.loc[index[: round(share * len(index))], column] = value
        return rows

    monkeypatch.setattr(nb, "ask", ask)


def addition(anchors, trials):
    v = anchors.shift()
    return lambda alpha: edited(trials, CMRM(v, alpha))


def test_a_setting_is_chosen_by_the_rule_for_alpha(nb, monkeypatch):
    """Of 10 benign requests and 5 questions, one lost is over 2 points."""
    settings = [{"alpha": alpha} for alpha in (0.1, 0.2, 0.3, 0.4)]
    unsafe = {0.0: 0.6, 0.1: 0.4, 0.2: 0.2, 0.3: 0.2, 0.4: 0.0, 0.45: 0.0}
    lost = {0.0: 0.0, 0.1: 0.0, 0.2: 0.0, 0.3: 0.0, 0.4: 0.2, 0.45: 0.2}
    scripted(monkeypatch, nb, unsafe, lost)
    methods = {
        "good": Method(addition, settings),
        "costly": Method(addition, [settings[3], {"alpha": 0.45}]),
        "one": Method(addition, settings[3:]),
        "as is": Method(lambda anchors, trials: lambda: list(trials), [{}]),
    }
    plain = sweep.validation(nb, 5)
    swept = sweep.sweep(nb, methods, plain)
    found = {name: choice.setting for name, choice in swept.choices.items()}
    assert found == {"good": {"alpha": 0.2}, "costly": None, "one": None, "as is": {}}
    assert swept.labels == {
        "good": "alpha 0.2",
        "costly": NO_EDIT,
        "one": NO_EDIT,
        "as is": "as is",
    }
    good = swept.rows[swept.rows["method"] == "good"]
    assert good["place"].unique().tolist() == [0, 1, 2, 3, 4]
    assert good.groupby("place")["setting"].unique().map(list).tolist() == [
        [NO_EDIT],
        *([f"alpha {setting['alpha']}"] for setting in settings),
    ]
    assert (good.groupby("place")["sample"].nunique() == len(plain)).all()


def test_the_test_has_references_and_leaves_out_unseen_verbs(nb):
    samples = sweep.samples_tested(nb, 2, unseen=False)
    assert {"harmful", "harmful-pair", "fact"} <= {sample.kind for sample in samples}
    assert "harmful-unseen" not in {sample.kind for sample in samples}
    chosen = chosen_as({"CMRM sample": {"alpha": 1.0}, "ShiftDC": None})
    lists = sweep.test_lists(nb, chosen, samples, ("none", nb.image))
    ids = {name: [trial.id for trial in trials] for name, trials in lists.items()}
    assert list(lists) == ["text only", "own image", "CMRM sample", "ShiftDC"]
    assert {trial.image for trial in lists["text only"]} == {"none"}
    assert {trial.sample.task for trial in lists["text only"]} == {"harmful", "benign"}
    assert ids["ShiftDC"] == ids["own image"]
    assert not set(ids["CMRM sample"]) & set(ids["own image"])


def test_captions_are_the_models_own(nb):
    samples = [trial.sample for trial in sweep.validation(nb, 1)]
    told = captioned(samples, nb.responses)
    asked = nb.ask([Trial(sample, prompt="Describe the image.") for sample in samples])
    assert [sample.caption for sample in told] == asked["response"].tolist()
    assert [sample.query for sample in told] == [sample.query for sample in samples]


def test_time_counts_what_is_known_of_each_sample_but_not_of_the_anchors(nb, monkeypatch):
    monkeypatch.setattr(sweep, "TIMED", 7)
    monkeypatch.setattr(sweep, "generate", lambda vlm, trials, **_: [""] * len(trials))
    met = []

    def slow(anchors, trials):
        assert anchors.folder != nb.anchors.folder
        time.sleep(0.5 if not met else 0.02 * len(trials))  # the first time, for the anchors
        met.append([trial.sample.id for trial in trials])
        return lambda alpha: []

    settings = {"slow": {"alpha": 1.0}, "none": None}
    choices = {name: Choice(setting, None, "") for name, setting in settings.items()}
    found = sweep.cost(nb, Chosen({name: Method(slow, []) for name in settings}, choices))
    assert list(found) == ["own image", "slow", "none"]
    assert 0.02 <= found["slow"] < 0.06
    assert max(found["own image"], found["none"]) < 0.01
    every = [name for names in met for name in names]
    assert len(every) == len(set(every)) == 7


@pytest.fixture
def other(processor, tmp_path):
    """Another model of the same make, as a checkpoint beside the notebook's own."""
    from families import TINY, shake

    from cmrm_utils.organism.recipe import build_model

    folder = tmp_path / "other"
    shake(build_model(TINY, processor, 9), 9).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_trained_checkpoints_answer_for_themselves(nb, other, capsys):
    own = nb.ask(nb.plainly(sweep.samples_tested(nb, 1, unseen=False)))
    checkpoints = {"mixed": f"{other}", "post-hoc": "{}-vlguard-posthoc"}
    models = comparison.load_trained(nb, checkpoints, {})
    rows = comparison.trained(nb, models, 1)
    said = capsys.readouterr().out
    assert "VLGuard post-hoc is left out" in said
    assert f"{nb.vlm.name}-vlguard-posthoc" in said
    assert rows["sample"].tolist() == own["sample"].tolist()
    assert set(rows["method"]) == {"VLGuard mixed"}
    assert (rows["seconds"] > 0).all()
    assert rows["response"].tolist() != own["response"].tolist()
    kept = nb.run.folder / "trained" / f"{load_vlm(other).fingerprint}.jsonl"
    assert kept.is_file()
    # Their fluency is of their own words, though the trials are the same.
    both = pd.concat([own.assign(method="own image", setting=NO_EDIT), rows])
    found = comparison.comparison_table(nb, both, {"own image": 0.5})
    values = found.set_index(["measure", "method"])["rate"]
    assert values["perplexity", "own image"] != pytest.approx(values["perplexity", "VLGuard mixed"])
    assert values["seconds", "own image"] == 0.5
    assert values["seconds", "VLGuard mixed"] == rows["seconds"].iloc[0]
    assert "twins refused" not in set(found["measure"])


def test_twins_stand_apart_from_other_benign_requests(nb):
    rows = nb.ask(nb.plainly(sweep.samples_tested(nb, 1, unseen=False)))
    rows = rows.assign(method="own image", setting=NO_EDIT)
    benign = rows.index[rows["task"] == "benign"]
    assert len(benign) > 1
    rows.loc[benign, "outcome"] = "complied"
    rows.loc[benign[0], ["kind", "outcome"]] = ["benign-twin", "refused"]
    found = comparison.comparison_table(nb, rows, {}).set_index("measure")[["hits", "n"]]
    assert found.loc["twins refused"].tolist() == [1, 1]
    assert found.loc["over-refusal"].tolist() == [1, len(benign)]


def test_a_missing_organism_names_the_command_that_makes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cmrm_utils.paths.ORGANISMS", tmp_path)
    nb = Notebook.open("06_x", model="organism", data="organism", out=tmp_path)
    models = comparison.load_trained(nb, {"mixed": "{}-vlguard-mixed"}, {})
    assert models == {}
    assert comparison.trained(nb, models, 1).empty
    said = capsys.readouterr().out
    assert "`cmrm train-organism --variant organism-vlguard-mixed` makes it" in said


def test_first_tokens_of_every_setting_and_of_a_trained_checkpoint(nb, other, monkeypatch):
    monkeypatch.setattr(FirstTokens, "openers", (5, 9))
    methods = with_settings(["CMRM dataset", "safety prompt", "ECSO"], alphas=[0.5, 1.0])
    table = comparison.first_tokens(nb, methods, {"VLGuard mixed": load_vlm(other)}, 1)
    settings = dict.fromkeys(zip(table["method"], table["setting"], strict=True))
    assert list(settings) == [
        ("CMRM dataset", "alpha 0.5"),
        ("CMRM dataset", "alpha 1"),
        ("safety prompt", "as is"),
        ("VLGuard mixed", "trained"),
    ]
    tokens = FirstTokens(nb, 1, "validation")
    assert set(table["measure"]) == set(tokens.measures)
    edit = CMRM(nb.anchors.shift(), 1.0)
    (wanted,) = tokens.changes([edited(tokens.trials, edit)])
    found = table[table["setting"] == "alpha 1"]["change"].tolist()
    assert found == pytest.approx([row["change"] for row in wanted], abs=1e-4)
    (own,) = tokens.changes([tokens.trials])
    assert [row["change"] for row in own] == pytest.approx([0.0] * len(own), abs=1e-4)
    assert (table[table["setting"] == "trained"]["change"].abs() > 1e-2).any()


def test_what_is_shared_out_is_what_the_notebook_asks(nb, shared_out):
    """In its order, no list needs what a later one asks."""
    parameters = {
        "n_validation": 1,
        "n_test": 2,
        "grids": FEW,
        "alphas": [0.5],
    }
    asked = shared_out(nb, "06", parameters)
    methods = comparison.compared(nb, [0.5], FEW)
    comparison.test(nb, sweep.sweep(nb, methods, sweep.validation(nb, 1)), 2)
    shared = {"model": nb.vlm.fingerprint, "max_new_tokens": 4}
    kept = set(Responses(nb.run.responses, shared).all)
    assert kept <= set(asked)
    # Captions of the test split are asked in vain where ShiftDC is not chosen.
    assert {asked[key].prompt for key in set(asked) - kept} <= {CAPTION_QUERY}


def test_judged_rows_of_the_test_bear_method_and_setting(nb):
    rows = comparison.test(nb, chosen_as({"CMRM dataset": {"alpha": 0.5}}), 1)
    assert rows.groupby("method", sort=False)["setting"].unique().map(list).to_dict() == {
        "text only": [NO_EDIT],
        "own image": [NO_EDIT],
        "CMRM dataset": ["alpha 0.5"],
    }
    under = rows[rows["method"] == "CMRM dataset"]
    assert set(under["alpha"]) == {0.5}
    again = judge(under[["query", "response", "answer", "choices", "world"]])
    assert again["outcome"].tolist() == under["outcome"].tolist()


def test_a_plan_counts_it_without_a_response(family_folders, monkeypatch):
    monkeypatch.setattr("cmrm_utils.studies.notebook.ANCHORS", 3)
    monkeypatch.setattr("cmrm_utils.studies.notebook.respond", None)
    parameters = {"model": str(family_folders["llava"]), "data": "organism", "settings": {}}
    parameters |= {
        "n_validation": 1,
        "n_test": 1,
        "grids": FEW,
        "alphas": [0.5],
    }
    parameters |= {"max_new_tokens": 4}
    rows = plan([("06", parameters)], probe=0)
    *_, last = rows["trials"]
    # Four requests as text; six samples as they are, and under each method, but for those that
    # VLM-Guard leaves alone.
    methods = len(METHODS) + len(PUBLISHED) - len(comparison.PROMPTED)
    assert 4 + 6 + 6 * (methods - 1) < last <= 4 + 6 + 6 * methods
    assert len(rows) == 3 + methods + 1


def test_what_training_took_is_told_where_it_is_recorded(nb, tmp_path, monkeypatch):
    monkeypatch.setattr("cmrm_utils.paths.ORGANISMS", tmp_path)
    for name, seconds in (("mixed", 1157), ("seed1-vlguard-posthoc", 231)):
        folder = tmp_path / (f"smollm2-llava-{name}" if "seed" in name else f"x-{name}")
        folder.mkdir()
        (folder / "projector.safetensors").write_text("")
        (folder / "training.json").write_text(f'{{"seconds": {seconds}}}')
    places = {"mixed": "x-mixed", "post-hoc": "smollm2-llava-seed1-vlguard-posthoc"}
    found = comparison.training_cost(nb, {**places, "other": "nowhere"})
    assert found.to_dict() == {("VLGuard post-hoc", "trained"): "60 steps, 120 pairs, 231 s"}
