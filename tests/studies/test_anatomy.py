"""What the shift vector is made of, and each sample's own shift."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cosine_similarity

from cmrm_utils import CMRM, Trial, hidden_states
from cmrm_utils.methods.prompting import captioned
from cmrm_utils.results.intervals import clustered_interval
from cmrm_utils.studies import anatomy, sweep
from cmrm_utils.studies.notebook import Notebook


def opened(model, folder, monkeypatch, anchors):
    monkeypatch.setattr("cmrm_utils.studies.notebook.ANCHORS", anchors)
    return Notebook.open("06_x", model=model, data="organism", out=folder, max_new_tokens=4)


@pytest.fixture
def nb(family_folders, tmp_path, monkeypatch):
    """Notebook 06 on the tiny LLaVA, with few anchors."""
    return opened(str(family_folders["llava"]), tmp_path, monkeypatch, 3)


def test_parts_have_the_dose_of_v(nb):
    parts = anatomy.parts(nb)
    v, safety = parts["v"], parts["refusal direction"]
    assert torch.equal(v.values, nb.anchors.shift().values)
    for name, part in parts.items():
        if name != "refusal part, size as in v":
            torch.testing.assert_close(part.norms, v.norms, msg=name)
    for name in ("v", "b", "v - b"):
        bare = parts[f"{name} without refusal"]
        assert bare.cosine(safety).abs().max() < 1e-5
        whole = parts["b (benign anchors)" if name == "b" else name]
        plane = (
            cosine_similarity(whole.values, bare.values, dim=-1) ** 2 + whole.cosine(safety) ** 2
        )
        torch.testing.assert_close(plane, torch.ones(3))  # nothing else was taken out
    inside = parts["refusal part, size as in v"]
    torch.testing.assert_close(inside.norms, v.norms * v.cosine(safety).abs())
    torch.testing.assert_close(inside.cosine(safety), v.cosine(safety).sign())
    assert parts["random"].cosine(v).abs().max() < 0.7


def test_v_is_its_benign_part_and_what_harmful_anchors_add(nb):
    harmful, benign = nb.anchors.harmful, nb.anchors.benign

    def shift(samples):
        blank, none = (
            hidden_states(nb.vlm, [Trial(s, image) for s in samples]) for image in ("blank", "none")
        )
        return (blank - none).mean(0)

    parts, b = anatomy.parts(nb), shift(benign)
    bad, good = (
        hidden_states(nb.vlm, [Trial(s, "none") for s in these]).mean(0)
        for these in (harmful, benign)
    )
    for name, wanted in {
        "b (benign anchors)": b,
        "v - b": shift(harmful) - b,
        "refusal direction": good - bad,
    }.items():
        near = cosine_similarity(parts[name].values, wanted, dim=-1)
        torch.testing.assert_close(near, torch.ones(3), msg=name)
    lines = anatomy.directions(nb).pivot(index="layer", columns="pair", values="cosine")
    cosine = parts["v"].cosine(parts["b (benign anchors)"])
    assert lines["v and b"].tolist() == pytest.approx(cosine.tolist())
    along = cosine_similarity(shift(harmful) - b, good - bad, dim=-1)
    assert lines["v - b and safety"].tolist() == pytest.approx(along.tolist(), abs=1e-4)


def test_part_table_says_where_states_are(nb):
    found = anatomy.part_table(nb, 2, [0.0, 0.5])  # 0 is there anyway, and once
    assert not found.duplicated(["measure", "part", "alpha"]).any()
    values = found.set_index(["measure", "part", "alpha"])["rate"]
    assert {"unsafe", "utility", "neither"} <= set(found["measure"])
    counted = found[~found["measure"].isin(["distance from text", "harm regained"])]
    assert (counted["hits"] / counted["n"] - counted["rate"]).abs().max() < 1e-9
    assert set(values["unsafe"].groupby("alpha").size()) == {9}
    assert (values["distance from text"].xs(0.0, level="alpha") == 1).all()
    harmful = [t.sample for t in sweep.validation(nb, 2) if t.sample.harmful]
    bad, good = (
        hidden_states(nb.vlm, [Trial(s, "none") for s in these]).mean(0)
        for these in (nb.anchors.harmful, nb.anchors.benign)
    )
    edit = CMRM(anatomy.parts(nb)["v"], 0.5)
    text, own, edited = (
        hidden_states(nb.vlm, [Trial(s, image, e) for s in harmful]).mean(0)
        for image, e in (("none", None), ("own", None), ("own", edit))
    )
    share = ((edited - text).norm(dim=-1) / (own - text).norm(dim=-1)).mean()
    assert values["distance from text", "v", 0.5] == pytest.approx(float(share), rel=1e-4)
    for state, alpha in ((own, 0.0), (edited, 0.5)):
        along = (((state - good) * (bad - good)).sum(-1) / ((bad - good) ** 2).sum(-1)).mean()
        assert values["harm regained", "v", alpha] == pytest.approx(float(along), abs=1e-4)


def described(sample):
    """As ShiftDC's authors ask: the request, then the caption."""
    return Trial(sample, "none", prompt=f"{sample.prompt} Image Caption: {sample.caption}")


def test_each_samples_cosine_is_of_its_own_shift(nb):
    rows = anatomy.sample_cosines(nb, 2)
    harmful, benign = nb.anchors.harmful, nb.anchors.benign
    told = [
        hidden_states(nb.vlm, [described(s) for s in captioned(these, nb.responses)])
        for these in (benign, harmful)
    ]
    safety = told[0].mean(0) - told[1].mean(0)
    samples = [s for s in sweep.samples_tested(nb, 2, unseen=False) if s.harmful]
    assert set(rows["sample"]) == {sample.id for sample in samples}
    for sample in captioned(samples, nb.responses):
        states = {
            image: hidden_states(nb.vlm, [Trial(sample, image)])[0]
            for image in ("none", "own", "blank", "noise")
        }
        states["caption"] = hidden_states(nb.vlm, [described(sample)])[0]
        mine = rows[rows["sample"] == sample.id].set_index(["shift", "image"])["cosine"]
        wanted = {("shift from the caption", "own"): states["own"] - states["caption"]}
        for image in ("own", "blank", "noise"):
            wanted["shift from text only", image] = states[image] - states["none"]
        for key, moved in wanted.items():
            late = cosine_similarity(moved, safety, dim=-1)[1:].mean()
            assert mine[key] == pytest.approx(float(late), abs=1e-4)
        assert len(mine) == 5  # and the sample's own caption in words


@pytest.fixture
def scattered():
    """60 requests of 12 verbs and two kinds: the larger the cosine, the likelier unsafe."""
    rng = np.random.default_rng(0)
    cosine = rng.uniform(-1, 1, 60)
    unsafe = rng.uniform(-1.5, 1.5, 60) < cosine
    rest = np.where(rng.uniform(size=60) < 0.5, "neither", "refused")
    outcome = np.where(unsafe, "complied", rest)
    return pd.DataFrame(
        {
            "shift": "from text",
            "image": "own",
            "kind": ["harmful", "harmful-pair"] * 30,
            "group": [f"verb {i % 12}" for i in range(60)],
            "cosine": cosine,
            "outcome": outcome,
            "exact": outcome,
        }
    )


def test_areas_and_bins(scattered):
    found = anatomy.cosine_table(scattered, bins=4, draws=50)
    cells = found.set_index(["measure", "kind"])
    assert set(cells.index) == {
        (measure, kind)
        for measure in ("unsafe", "not refused")
        for kind in ("all", "harmful", "harmful-pair")
    }
    hits = {"unsafe": scattered["outcome"] == "complied"}
    hits["not refused"] = scattered["outcome"] != "refused"
    for (measure, kind), part in cells.groupby(level=[0, 1]):
        kept = scattered["kind"].isin([kind]) | (kind == "all")
        hit, cosine = hits[measure][kept], scattered["cosine"][kept]
        assert part["auc"].iloc[0] == pytest.approx(roc_auc_score(hit, cosine))
        assert (part["auc_low"] <= part["auc"]).all()
        assert (part["auc"] <= part["auc_high"]).all()
        assert part["auc_low"].iloc[0] < part["auc_high"].iloc[0]
        assert part["n"].sum() == kept.sum()
        assert part["n"].max() - part["n"].min() <= 1
        assert part["hits"].sum() == hit.sum()
        assert part["cosine"].is_monotonic_increasing
    lowest = scattered.sort_values("cosine").head(15)
    first = cells.loc[("unsafe", "all")].iloc[0]
    hit = lowest["outcome"] == "complied"
    assert first["cosine"] == pytest.approx(lowest["cosine"].mean())
    assert first["rate"] == pytest.approx(hit.mean())
    assert (first["low"], first["high"]) == pytest.approx(
        clustered_interval(hit, lowest["group"].tolist(), lowest["kind"].tolist())
    )


def test_in_natural_language_complied_is_called_answered(scattered):
    natural = anatomy.cosine_table(scattered.assign(exact=None), draws=5)
    assert set(natural["measure"]) == {"not refused", "answered"}
    exact = anatomy.cosine_table(scattered, draws=5)
    by = natural["measure"].replace("answered", "unsafe")
    pd.testing.assert_frame_equal(natural.assign(measure=by), exact)


def test_there_is_no_area_where_all_are_alike(scattered):
    same = scattered.assign(outcome="complied", kind="harmful")
    found = anatomy.cosine_table(same, draws=5)
    assert found[["auc", "auc_low", "auc_high"]].isna().all(axis=None)
    assert set(found["kind"]) == {"all"}
    assert (found["rate"] == 1).all()


def test_on_the_organism_the_refusal_component_is_what_works(tmp_path, monkeypatch):
    """At the dose at which v works; few samples, so wide margins."""
    monkeypatch.setattr("cmrm_utils.studies.notebook.ANCHORS", 40)
    nb = Notebook.open("06_x", model="organism", data="organism", out=tmp_path)
    names = ("v without refusal", "refusal direction")
    kept = {name: anatomy.parts(nb)[name] for name in names}
    monkeypatch.setattr(anatomy, "parts", lambda nb: kept)
    found = anatomy.part_table(nb, 12, [0.2])
    unsafe = found[found["measure"] == "unsafe"].set_index(["part", "alpha"])["rate"]
    start = unsafe["refusal direction", 0.0]
    assert unsafe["v without refusal", 0.2] == pytest.approx(start, abs=0.05)
    assert unsafe["refusal direction", 0.2] < start - 0.1
