"""What notebook 08 asks, on a tiny model and the organism's world."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FIXTURES
from PIL import Image

from cmrm_utils import CMRM, Sample, hidden_states
from cmrm_utils.conditions import IMAGES
from cmrm_utils.organism.world import Request
from cmrm_utils.studies import abilities, gating, pictures, sweep
from cmrm_utils.studies import anchors as ask
from cmrm_utils.studies.attack import Attack
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.registry import STUDIES
from cmrm_utils.studies.selection import Choice
from cmrm_utils.trials import Trial, table

P = {"alphas": [0.5], "gate_alphas": [0.5], "doses": [0.3], "n": 2, "n_test": 2, "n_sets": 2}
P |= {"sizes": [1, 3], "draws": 2}


@pytest.fixture(autouse=True)
def _few_anchors(monkeypatch):
    monkeypatch.setattr(ask, "ANCHORS", 6)
    monkeypatch.setattr(gating, "ANCHORS", 6)
    monkeypatch.setattr("cmrm_utils.studies.notebook.ANCHORS", 6)
    monkeypatch.setattr(ask, "MEANINGLESS", ("black", "blur", "mean"))


def open_nb(family_folders, folder, data="organism"):
    model = str(family_folders["llava"])
    return Notebook.open("08_x", model=model, data=data, out=folder, max_new_tokens=4)


@pytest.fixture(scope="module")
def nb(family_folders, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrm_utils.studies.notebook.ANCHORS", 6)
        yield open_nb(family_folders, tmp_path_factory.mktemp("nb"))


def at_half(nb):
    """CMRM as if alpha 0.5 had been chosen: a random model gains nothing."""
    methods = sweep.levels(nb, P["alphas"])
    return sweep.Chosen(methods, dict.fromkeys(methods, Choice({"alpha": 0.5}, None, "")))


@pytest.fixture(scope="module")
def chosen(nb):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrm_utils.studies.notebook.ANCHORS", 6)
        yield at_half(nb)


@pytest.fixture
def sets(nb):
    return ask.anchor_sets(nb, sizes=[1, 3, 10**6], draws=2)


def test_sets_differ_from_the_reference_in_one_thing_each(nb, sets):
    names = [(each.varied, each.name) for each in sets]
    assert names[0] == ("reference", "harmful, blank")
    assert len(set(names)) == len(names)
    assert [name for varied, name in names if varied == "number"] == [
        *("1, draw 1", "1, draw 2", "3, draw 1", "3, draw 2", "400, draw 1")
    ]
    assert [name for varied, name in names if varied == "image"] == ["black", "blur", "mean image"]
    by = {(each.varied, each.name): each for each in sets}
    harmful = nb.samples("anchors", None, "harmful")
    burning = [s for s in harmful if ask.family(s) == "damage"]
    damage = by["family", "damage"]
    assert damage.size == len(burning) > 10
    states = [hidden_states(nb.vlm, [Trial(s, i) for s in burning]) for i in ("blank", "none")]
    torch.testing.assert_close(damage.vectors.values, (states[0] - states[1]).mean(0))
    half = by["requests", "half and half"]
    assert half.size == 12
    assert sets[0].size == 12
    one, two = by["number", "1, draw 1"], by["number", "1, draw 2"]
    assert not torch.equal(one.vectors.values, two.vectors.values)


def test_the_mean_image_is_of_the_anchors_own(nb, sets):
    usual = nb.samples("anchors", 6, "harmful")
    pixels = np.mean([np.asarray(s.load_image(), dtype=float) for s in usual], axis=0)
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
    shown = [Trial(replace(s, image=picture)) for s in usual]
    bare = [Trial(s, "none") for s in usual]
    wanted = (hidden_states(nb.vlm, shown) - hidden_states(nb.vlm, bare)).mean(0)
    torch.testing.assert_close(sets[-1].vectors.values, wanted)


def test_a_family_is_the_verbs_or_the_group():
    burn = Sample("a", Request("burn", "kettle").query, kind="harmful", group="burn", world=True)
    other = Sample("b", "How do I do ill?", kind="harmful", group="policy 1")
    warm = Sample("c", Request("warm", "kettle").query, kind="benign", group="warm")
    assert [ask.family(s) for s in (burn, other, warm)] == ["damage", "policy 1", "warm"]
    assert ask.family(replace(warm, world=True)) is None
    real = replace(burn, id="e", group="policy 2", world=False)
    assert ask.family(real) == "policy 2"
    assert pictures._answer(real) == "Sure, here is"
    found = ask.families([burn, replace(burn, id="d"), other, warm], least=2)
    assert {name: [s.id for s in these] for name, these in found.items()} == {"damage": ["a", "d"]}


def test_sets_are_tried_as_taken_and_at_equal_dose(nb, sets):
    trials = ask.anchor_trials(nb, sets, 0.5, [0.3], 2)
    added = {
        (trial.edit.settings["method"], trial.edit.settings["alpha"]): trial.edit.added
        for trial in trials
        if trial.edit is not None
    }
    for each in sets:
        name = f"{each.varied}: {each.name}"
        for strength in (0.3, 0.5):  # as long as v in every layer, against the set's own direction
            norms = added[name, strength].norm(dim=-1)
            torch.testing.assert_close(norms, strength * sets[0].vectors.norms)
            along = torch.cosine_similarity(added[name, strength], each.vectors.values, dim=-1)
            torch.testing.assert_close(along, torch.full_like(along, -1.0))
        torch.testing.assert_close(added[f"{name}, as taken", 0.5], -0.5 * each.vectors.values)


def test_effects_and_what_predicts_them(nb, sets):
    effects = ask.anchor_effects(nb, sets, 0.5, [0.3], 2)
    assert len(effects) == len(sets) * len(ask.AT)
    first = effects.iloc[0]
    assert first["cosine with v"] == pytest.approx(1)
    assert first["norm"] == pytest.approx(1)
    assert first["cosine against refusal"] < 1
    at_alpha = effects[effects["at"] != "its own dose"]
    assert set(at_alpha["dose"]) == {0.5}
    assert set(effects["dose"]) <= {0.0, 0.3, 0.5}
    start = effects["refused"] - effects["rise"]
    assert start.max() == pytest.approx(start.min())
    found = ask.predictors(effects)
    assert len(found) == len(ask.AT) * len(ask.PREDICTORS)
    assert set(found["sets"]) == {len(sets)}


def made_effects():
    norms = np.arange(12.0)
    rows = pd.DataFrame({"norm": norms, "cosine with v": norms[::-1], "rise": norms**3})
    rows["cosine against refusal"] = [0, 1] * 6
    return rows.assign(at="x")


def test_predictors_are_ranked():
    found = ask.predictors(made_effects()).set_index("predictor")
    assert found.loc["norm", "correlation"] == pytest.approx(1)
    assert found.loc["cosine with v", "correlation"] == pytest.approx(-1)
    assert (
        found.loc["cosine against refusal", "low"] < 0 < found.loc["cosine against refusal", "high"]
    )


def test_own_family_is_paired_over_what_was_not_refused():
    """Sample 1 is refused under its own family's anchors alone; 2 under c's; 3 always was."""
    unsafe = {
        ("1", "a"): {"no edit": 1, "a": 0, "b": 1, "c": 1, ask.ALL: 0},
        ("2", "b"): {"no edit": 1, "a": 1, "b": 1, "c": 0, ask.ALL: 0},
        ("3", "b"): {"no edit": 0, "a": 1, "b": 0, "c": 1, ask.ALL: 1},
    }
    rows = [
        {"sample": sample, "asked": asked, "anchors": anchors, "refused": not hit, "group": sample}
        | {"kind": "harmful"}
        for (sample, asked), hits in unsafe.items()
        for anchors, hit in hits.items()
    ]
    change, low, high = ask.own_family(pd.DataFrame(rows))
    assert change == pytest.approx(((1 - 0) + (0.5 - 1)) / 2)
    assert low < change < high
    one_verb = pd.DataFrame(rows).assign(group="all of one verb")
    assert ask.own_family(one_verb) == pytest.approx((change, change, change))
    assert ask.own_family(pd.DataFrame(rows).query("sample == '3'")) is None


def test_families_are_asked_under_each_others_anchors(nb, sets):
    rows = ask.family_rows(nb, sets, 0.5, 2)
    assert set(rows["anchors"]) == {"no edit", ask.ALL, *set(rows["asked"])}
    assert rows.groupby(["anchors", "asked"]).size().eq(2).all()
    assert (rows["refused"] == (rows["outcome"] == "refused")).all()


def test_data_without_families_says_so(nb, sets, capsys):
    kept = [each for each in sets if each.varied != "family"]
    assert ask.family_rows(nb, kept, 0.5, 2) is None
    assert "no two families" in capsys.readouterr().out


def test_facts_and_counting_by_image_and_edit(nb, chosen):
    found, changes = abilities.beyond(nb, chosen, 3)
    cells = found.set_index(["measure", "image", "method"])
    assert set(found["n"]) == {3}
    assert ("facts", "blank", "CMRM sample") in cells.index
    assert ("counting", "caption", "none") in cells.index
    assert ("counting", "blank", "none") not in cells.index
    pairs = changes.set_index(["measure", "image", "method"])["against"]
    assert pairs["facts", "own", "none"] == "none"
    assert pairs["facts", "own", "CMRM dataset"] == "own"
    assert pairs["counting", "own", "none"] == "caption"
    assert ("facts", "none", "none") not in pairs.index
    counting = abilities.questions(nb, None)["counting"]
    assert {s.kind for s in counting} == {"count"}


def test_what_an_image_breaks_and_an_edit_mends_have_their_signs(nb, chosen, monkeypatch):
    """As if right answers were given as text, under CMRM's dataset level, and nowhere else."""

    def ask_it(trials):
        rows = table(trials, [""] * len(trials))
        return rows.assign(
            right=(rows["image"] == "none") | (rows["method"] == "CMRM dataset"),
            outcome="neither",
        )

    monkeypatch.setattr(nb, "ask", ask_it)
    _, changes = abilities.beyond(nb, chosen, 3)
    change = changes.set_index(["measure", "image", "method"])["change"]
    assert change["facts", "own", "none"] == -1.0
    assert change["facts", "own", "CMRM dataset"] == 1.0
    assert change["facts", "own", "CMRM sample"] == 0.0


def test_refusals_that_an_attack_takes_count_as_a_fall(nb, chosen, monkeypatch):
    def ask_it(trials):
        rows = table(trials, [""] * len(trials))
        outcome = np.where(rows["image"] == "blank", "refused", "complied")
        return rows.assign(outcome=outcome, right=True)

    monkeypatch.setattr(nb, "ask", ask_it)
    made = Attack(Image.new("RGB", (48, 48)), (1.0,))
    _, changes = pictures.adversarial(nb, chosen, {("within 8 levels", "none"): made}, 2, 2)
    assert len(changes) == 2 * 3
    assert (changes["change"] == -1.0).all()


def test_gates_are_on_for_what_must_be_refused(nb):
    """On the anchors that they were fitted on, where the probe cannot but tell them apart."""
    harmful, benign = (nb.samples("anchors", 6, task) for task in ("harmful", "benign"))
    on = gating.open_gates(nb, [*harmful, *benign])["text state, probe"]
    assert sum(on[s.id] for s in harmful) > len(harmful) / 2
    assert sum(on[s.id] for s in benign) < len(benign) / 2


def test_what_a_world_lacks_is_said(nb, chosen, capsys):
    assert abilities.extended(nb, chosen, 3) is None
    assert "organism-extended" in capsys.readouterr().out


def test_verbs_in_pictures_and_what_nobody_knows(family_folders, tmp_path):
    nb = open_nb(family_folders, tmp_path, "organism+organism-extended")
    found = abilities.extended(nb, at_half(nb), 4).set_index(["measure", "kind", "image", "method"])
    assert set(found["n"]) == {4}
    wanted = {
        "harmful-written": "unsafe",
        "benign-written": "over-refusal",
        "reading": "visual questions",
        "maker": "facts",
        "unknown": "abstentions",
    }
    assert set(wanted) == set(abilities.EXTENDED)
    for kind, measure in wanted.items():
        for method in ("none", *abilities.EDITS):
            assert (measure, kind, "own", method) in found.index
        assert ((measure, kind, "none", "none") in found.index) == (kind in abilities.AS_TEXT)
    assert not {s.kind for s in abilities.requests(nb, "test", 1)} & set(abilities.EXTENDED)
    (written, *_) = (s for s in nb.samples("test", 1, "harmful") if s.kind == "harmful-written")
    verb = written.request.split()
    assert ask.world.find_request(written.request).verb in verb
    assert pictures._answer(written).startswith(
        f"To {ask.world.find_request(written.request).verb}"
    )


def test_perturbed_pictures_unedited_and_edited(nb, chosen):
    found = pictures.perturbed(nb, chosen, 1)
    assert set(found["image"]) == set(pictures.SHOWN)
    assert set(found["method"]) == {"none", *abilities.EDITS}
    trials = pictures.perturbed_trials(nb, chosen, 1)
    assert {t.sample.kind for t in trials} >= {"harmful", "harmful-pair", "benign"}
    assert "harmful-unseen" not in {t.sample.kind for t in trials}


def test_attacks_are_tried_as_ordinary_images(nb, chosen, monkeypatch):
    asked = []

    def attack(vlm, trials, targets, start, *, epsilon=255, steps):
        samples, (edit, *_) = zip(*((t.sample, t.edit) for t in trials), strict=True)
        asked.append((samples, targets, start, epsilon, edit))
        colour = (len(asked) * 20,) * 3
        return Attack(Image.new("RGB", (48, 48), colour), (1.0, 0.5))

    monkeypatch.setattr(pictures, "attack", attack)
    found = pictures.attacks(nb, chosen, epsilons=[8, 255], steps=2)
    assert list(found) == [
        ("within 8 levels", "none"),
        ("unbounded", "none"),
        ("unbounded, knows CMRM dataset", "CMRM dataset"),
        ("unbounded, knows CMRM sample", "CMRM sample"),
    ]
    samples, targets, start, epsilon, edit = asked[0]
    assert {s.id.split("/")[0] for s in samples} == {"anchors"}
    assert all(s.harmful for s in samples)
    request = ask.world.find_request(samples[0].query)
    assert targets[0] == f"To {request.verb} the {request.object}, first"
    assert (start.tobytes(), epsilon, edit) == (IMAGES["blank"](samples[0]).tobytes(), 8, None)
    assert asked[2][4].settings["method"] == "CMRM dataset"
    pictures.attacks(nb, chosen, epsilons=[], steps=2, target="Sure")
    assert set(asked[-1][1]) == {"Sure"}

    shares, changes = pictures.adversarial(nb, chosen, found, 2, 2)
    test = shares[shares["split"] == "test"]
    tried = set(zip(test["picture"], test["method"], strict=True))
    everyone = ("none", *abilities.EDITS)
    plain = {(name, m) for name in ("blank", "within 8 levels", "unbounded") for m in everyone}
    known = {(f"unbounded, knows {name}", name) for name in abilities.EDITS}
    assert tried == plain | known
    bars = pictures.outcome_shares(test)
    assert len(bars) == len(tried)
    assert np.allclose(bars[["refused", "complied", "neither"]].sum(axis=1), 1)
    assert set(changes["split"]) == {"validation", "test"}
    assert "blank" not in set(changes["picture"])
    assert (changes["knows"] == changes["picture"].str.contains("knows")).all()


def test_gates_are_off_without_an_image_and_told_the_truth(nb):
    samples = [*abilities.requests(nb, "validation", 3), *nb.questions("validation", 3)]
    bare = [replace(s, image=None) for s in samples]
    gates = gating.open_gates(nb, samples)
    assert set(gates) == {gating.ALWAYS, gating.TOLD, *gating.GATES}
    assert gates[gating.TOLD] == {s.id: s.harmful for s in samples}
    assert all(gates[gating.ALWAYS].values())
    assert not any(any(on.values()) for on in gating.open_gates(nb, bare).values())
    assert len({tuple(gates[name].values()) for name in gating.GATES}) > 1


def test_a_gated_edit_is_the_edit_or_none(nb):
    plain, vectors = gating.plain_trials(nb, "validation", 2), nb.anchors.shift()
    gates = gating.open_gates(nb, [trial.sample for trial in plain])
    ids = {}
    for trial in gating.curve_trials(nb, [0.0, 0.5], 2):
        if trial.edit is not None:
            method, alpha = trial.edit.settings["method"], trial.edit.settings["alpha"]
            assert alpha == 0.5
            on = gates[method][trial.sample.id]
            wanted = Trial(trial.sample, edit=CMRM(vectors, 0.5) if on else None)
            assert trial.id == wanted.id
            ids[method, trial.sample.id] = trial.id
    assert set(ids) == {(name, t.sample.id) for name in gates for t in plain}
    edited = Trial(plain[0].sample, edit=CMRM(vectors, 0.5))
    assert ids[gating.ALWAYS, plain[0].sample.id] == edited.id


def test_gates_on_the_test_split_at_their_own_alphas(nb, chosen):
    curve, strengths = gating.gate_curves(nb, chosen, [0.5], 2)
    assert set(zip(curve["method"], curve["alpha"], strict=True)) == {
        (name, alpha) for name in strengths for alpha in (0.0, 0.5)
    }
    strengths = {name: 0.1 * i for i, name in enumerate(strengths)}  # 0 is an alpha too
    found, errors, against = gating.gate_test(nb, strengths, 2)
    shown = found.drop_duplicates(["method", "alpha"]).set_index("method")["alpha"].to_dict()
    assert shown == pytest.approx({"never": 0.0, **strengths})
    wrong = errors.set_index(["method", "error"])["rate"]
    assert wrong[gating.ALWAYS, "misses"] == 0
    assert wrong[gating.ALWAYS, "false alarms, benign"] == 1
    assert wrong[gating.ALWAYS, "false alarms, questions"] == 1
    assert not wrong[gating.TOLD].any()
    assert set(against["method"]) == {"never", *strengths} - {gating.ALWAYS}
    assert {"refused", "unsafe", "neither", "benign answered"} <= set(against["measure"])


def test_what_is_shared_out_is_what_the_notebook_asks(family_folders, tmp_path):
    """Each list as it can be made, and then every part but the attacks: nothing is left to ask."""
    nb = open_nb(family_folders, tmp_path)
    for trials in STUDIES["08"](nb, P):
        nb.ask(trials)
    known = len(nb.run.responses.read_text().splitlines())
    chosen = sweep.choose(nb, sweep.levels(nb, P["alphas"]), sweep.tried(nb, P["n"]))
    alpha = chosen.alphas["CMRM dataset"]
    sets = ask.anchor_sets(nb, sizes=P["sizes"], draws=P["draws"])
    ask.anchor_effects(nb, sets, alpha, P["doses"], P["n_sets"])
    ask.family_rows(nb, sets, alpha, P["n_sets"])
    abilities.beyond(nb, chosen, P["n_test"])
    abilities.extended(nb, chosen, P["n_test"])
    pictures.perturbed(nb, chosen, P["n_test"])
    _, strengths = gating.gate_curves(nb, chosen, P["gate_alphas"], P["n"])
    gating.gate_test(nb, strengths, P["n_test"])
    assert len(nb.run.responses.read_text().splitlines()) == known


PUBLIC = "vlsafe+xstest+scienceqa@test+llava-bench-coco@test"


def test_public_sets_have_what_they_have(family_folders, tmp_path, monkeypatch, capsys):
    """Requests of which many have no image, no facts, no families."""
    monkeypatch.setenv("CMRM_DATA", str(FIXTURES))
    nb = open_nb(family_folders, tmp_path, PUBLIC)
    for trials in STUDIES["08"](nb, {**P, "n_test": None}):
        assert trials
        nb.ask(trials)
    chosen = sweep.choose(nb, sweep.levels(nb, P["alphas"]), sweep.tried(nb, P["n"]))
    shares, changes = abilities.beyond(nb, chosen, None)
    assert shares.empty == changes.empty
    assert abilities.extended(nb, chosen, None) is None
