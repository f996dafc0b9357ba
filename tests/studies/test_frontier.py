"""Notebook 07: directions beside v, what they bring back and cost, and what is taken out."""

import numpy as np
import pandas as pd
import pytest
import torch
from questions import open_nb

from cmrm_utils import CMRM, Trial, hidden_states
from cmrm_utils.engine.batch import log_odds
from cmrm_utils.engine.loops import first_logits
from cmrm_utils.store import Responses
from cmrm_utils.studies import anatomy, frontier
from cmrm_utils.studies.notebook import Notebook

pytestmark = pytest.mark.usefixtures("few_anchors")

OPENERS = (3, 700, 701)


@pytest.fixture
def nb(family_folders, tmp_path):
    return open_nb(family_folders, tmp_path, "organism")


@pytest.fixture
def opened(nb, monkeypatch):
    """A notebook whose model has openers; requests named twins among the benign ones."""
    monkeypatch.setattr(Notebook, "openers", property(lambda self: OPENERS))
    return nb


def test_a_response_opens_with_a_refusal_where_its_log_odds_are_above_zero(opened, monkeypatch):
    trials = [*frontier.requests(opened, 2), *frontier.requests(opened, 1)]  # some twice
    rows = frontier.opening(opened, trials)
    wanted = log_odds(first_logits(opened.vlm, trials), OPENERS)
    np.testing.assert_allclose(rows["log_odds"], wanted, atol=1e-4)
    assert rows["hit"].tolist() == (wanted > 0).tolist()
    assert rows["sample"].tolist() == [trial.sample.id for trial in trials]
    monkeypatch.setattr(frontier, "first_logits", None)  # all is kept in the run
    pd.testing.assert_frame_equal(frontier.opening(opened, trials), rows)


def test_without_log_odds_the_judge_tells(nb):
    rows = frontier.opening(nb, frontier.requests(nb, 1))
    assert "log_odds" not in rows
    assert rows["hit"].tolist() == (rows["outcome"] == "refused").tolist()


def test_every_direction_has_vs_norms_and_is_turned_as_v(nb):
    parts = frontier.directions(nb)
    v, r = parts["v"], nb.anchors.refusal()
    assert next(iter(parts)) == "v"
    assert set(frontier.SHOWN) - {"refused - answered"} <= set(parts)
    own_size = "refusal part, size as in v"
    assert (parts[own_size].norms < v.norms).all()
    for name in set(parts) - {own_size}:
        torch.testing.assert_close(parts[name].norms, v.norms, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["refusal direction"].cosine(r), -torch.ones(3))
    assert parts["v without refusal"].cosine(r).abs().max() < 1e-4


def test_shuffled_and_random_directions_by_hand(nb):
    """Drawn from one seed, the signs before the weights."""
    parts, harmful = frontier.directions(nb), nb.anchors.harmful
    text, blank = (
        hidden_states(nb.vlm, [Trial(s, image) for s in harmful]) for image in ("none", "blank")
    )
    noise = torch.Generator().manual_seed(0)
    coins = torch.randint(0, 2, (len(harmful), 1, 1), generator=noise).flatten().tolist()
    weights = torch.randn(len(harmful), generator=noise).tolist()
    assert {*coins} == {0, 1}
    shifts = blank - text
    shuffled = sum(one if coin else -one for one, coin in zip(shifts, coins, strict=True))
    apart = blank - blank.mean(0)  # of the states beside a blank image, not of the text's
    drawn = sum(weight * one for one, weight in zip(apart, weights, strict=True))
    for name, values in {"v, signs shuffled": shuffled, "random, as states vary": drawn}.items():
        wanted = values / values.norm(dim=-1, keepdim=True) * parts["v"].norms[:, None]
        torch.testing.assert_close(parts[name].values, wanted, rtol=1e-3, atol=1e-4)


def test_refused_minus_answered_is_within_each_kind(nb, monkeypatch):
    """Refused and answered by hand; a kind without two of both does not count."""
    samples = nb.samples("anchors", None, "harmful", "benign")

    def ask(trials):
        outcomes = ["refused" if i % 3 == 0 else "complied" for i in range(len(trials))]
        kinds = [trial.sample.kind for trial in trials]
        return pd.DataFrame({"kind": kinds, "outcome": outcomes})

    monkeypatch.setattr(nb, "ask", ask)
    found = frontier.refused_minus_answered(nb)
    states = hidden_states(nb.vlm, [Trial(s, "none") for s in samples]).double()
    apart = []
    for kind in dict.fromkeys(s.kind for s in samples):
        at = [i for i, s in enumerate(samples) if s.kind == kind]
        refused = [i for i in at if i % 3 == 0]
        answered = [i for i in at if i % 3]
        if min(len(refused), len(answered)) > 1:
            apart.append(states[refused].mean(0) - states[answered].mean(0))
    assert len(apart) > 1
    torch.testing.assert_close(found.values, torch.stack(apart).mean(0).float())
    monkeypatch.setattr(nb, "ask", lambda trials: ask(trials).assign(outcome="refused"))
    assert frontier.refused_minus_answered(nb) is None
    assert "refused - answered" not in frontier.directions(nb)


def test_the_frontier_is_each_sides_share_at_each_alpha(opened):
    v = opened.anchors.shift()
    parts = {"v": v, "other": v.random(1)}
    rows = frontier.frontier(opened, parts, [2.0], 2).set_index(["part", "alpha"])
    assert set(rows.index) == {(p, a) for p in parts for a in (0.0, 2.0)}
    plain = frontier.requests(opened, 2)
    for (name, alpha), row in rows.iterrows():
        edited = [Trial(t.sample, t.image, CMRM(parts[name], alpha)) for t in plain]
        odds = log_odds(first_logits(opened.vlm, edited), OPENERS).numpy()
        harmful = np.array([t.sample.harmful for t in plain])
        assert row["refused"] == pytest.approx((odds[harmful] > 0).mean())
        assert row["twins"] == pytest.approx((odds[~harmful] > 0).mean())  # all benign: no twins
        assert row["log-odds"] == pytest.approx(odds[harmful].mean(), abs=1e-3)
        above = (odds[harmful][:, None] > odds[~harmful]).mean()
        assert row["area"] == pytest.approx(above, abs=1e-6)
    assert (rows["refused_low"] <= rows["refused"]).all()


def test_a_model_without_log_odds_and_data_without_benign_requests(nb, monkeypatch):
    """A random model opens no refusals, and a set may hold harmful requests alone."""
    harmful = [t for t in frontier.requests(nb, 2) if t.sample.harmful]
    monkeypatch.setattr(frontier, "requests", lambda nb, n: harmful)
    ask = nb.ask
    monkeypatch.setattr(nb, "ask", lambda trials: ask(trials).assign(log_odds=None))
    rows = frontier.frontier(nb, {"v": nb.anchors.shift()}, [0.5], 2)
    assert rows["alpha"].tolist() == [0.0, 0.5]
    assert rows["twins"].isna().all()
    assert rows["refused"].notna().all()
    assert "log-odds" not in rows
    assert frontier.matched(rows, 2.0).isna().any(axis=None)


def test_doses_by_hand(opened):
    r = opened.anchors.refusal()
    rows = frontier.frontier(opened, {"v": r.scaled(-2.0)}, [0.5], 1).set_index("alpha")
    every = [t for t in frontier.requests(opened, None) if t.sample.harmful]
    size = hidden_states(opened.vlm, every).norm(dim=-1).mean(0)
    wanted = float((r.norms / size).mean())  # 0.5 times 2
    assert rows.loc[0.5, "dose"] == pytest.approx(wanted, rel=1e-4)
    assert rows.loc[0.5, "towards"] == pytest.approx(wanted, rel=1e-4)
    assert rows.loc[0.0, "dose"] == 0


def test_twins_and_ordinary_requests_are_told_apart():
    rows = pd.DataFrame(
        {
            "task": ["harmful", "benign", "benign", "benign"],
            "kind": ["harmful", "benign", "benign-twin", "benign-twin-picture"],
        }
    )
    sides = frontier._sides(rows)
    assert {name: these.index.tolist() for name, these in sides.items()} == {
        "refused": [0],
        "twins": [2, 3],
        "ordinary": [1],
    }


def test_matched_reads_off_between_alphas():
    line = {"part": "a", "dose": [0.0, 0.1, 0.2], "towards": 0.0, "alpha": [0.0, 1.0, 2.0]}
    rows = pd.DataFrame({**line, "refused": [0.5, 0.7, 0.9], "twins": [0.0, 0.1, 0.5]})
    never = rows.assign(part="b", refused=[0.5, 0.4, 0.3])
    there = rows.assign(part="c", refused=[0.85, 0.4, 0.9], twins=[0.2, 0.1, 0.5])
    found = frontier.matched(pd.concat([rows, never, there]), 0.8).set_index("part")
    assert found.loc["a"].tolist() == pytest.approx([1.5, 0.15, 0.0, 0.3])
    assert found.loc["b"].isna().all()
    assert found.loc["c", "twins"] == 0.2  # as it is, without an edit


def test_what_is_taken_out_is_gone(nb):
    r = nb.anchors.refusal()
    edit = frontier.taken_out(r, 0.5)  # of three layers, the second one's
    trials = [Trial(t.sample, "none", edit) for t in frontier.requests(nb, 1)]
    unit = torch.nn.functional.normalize(r.values[1], dim=-1)
    along = hidden_states(nb.vlm, trials) @ unit
    assert along.abs().max() < 1e-4
    rows = frontier.ablations(nb, 1, 0.5)
    assert set(rows["taken out"]) >= {"nothing", "refusal direction", "random"}
    assert set(rows["image"]) == {"none"}


def test_what_is_shared_out_is_what_the_notebook_asks(nb, shared_out):
    """In its order, no list needs what a later one asks."""
    parameters = {"n_validation": 1, "n_parts": 1, "n_test": 1, "alphas": [0.5], "doses": [0.5]}
    parameters["depth"] = 0.5
    asked = shared_out(nb, "07", parameters)
    frontier.ablations(nb, 1, 0.5)
    frontier.frontier(nb, frontier.directions(nb), [0.5], 1)
    anatomy.part_table(nb, 1, [0.5])
    anatomy.sample_cosines(nb, 1)
    kept = set(Responses(nb.run.responses, nb.shared).all)
    assert kept <= set(asked)
