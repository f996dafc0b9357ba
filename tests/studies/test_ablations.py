"""Which part of the shift matters: the variants, and what each does to the first token."""

import numpy as np
import pandas as pd
import pytest
import torch

from cmrm_utils import CMRM, InputError, ShiftVectors, first_logits
from cmrm_utils.methods.base import edited
from cmrm_utils.studies import first_token
from cmrm_utils.studies.ablations import Ablations, ordered
from cmrm_utils.studies.first_token import KEPT, MEASURES
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.variants import (
    KINDS,
    Variant,
    first_heads,
    head_variants,
    layer_variants,
    marked,
    place_variants,
    rank_variants,
    token_variants,
)

OPENERS = (5, 9)
"""What the tests take for tokens that open refusals: a random model has none."""


@pytest.fixture
def nb(family_folders, tmp_path):
    model = str(family_folders["llava"])
    return Notebook.open("08_x", model=model, data="organism", out=tmp_path, max_new_tokens=4)


@pytest.fixture
def ab(nb, monkeypatch):
    monkeypatch.setattr(Ablations, "openers", OPENERS)
    return Ablations(nb, 2)


def edits(ab, variants, alpha=1.0):
    """Each variant's edit, by its name."""
    return {variant.name: ab.edit(variant, alpha) for variant in variants}


def test_layers_looked_at_are_evenly_spaced_with_both_ends():
    assert marked(6) == [0, 1, 2, 3, 4, 5]
    assert marked(32, 5) == [0, 8, 16, 23, 31]
    assert marked(1) == [0]


def test_layers_alone_from_and_up_to(ab):
    found = {name: e.add.any(-1).tolist() for name, e in edits(ab, layer_variants(3)).items()}
    assert found == {
        "alone 0": [True, False, False],
        "from it on 0": [True, True, True],
        "up to it 0": [True, False, False],
        "alone 1": [False, True, False],
        "from it on 1": [False, True, True],
        "up to it 1": [True, True, False],
        "alone 2": [False, False, True],
        "from it on 2": [False, False, True],
        "up to it 2": [True, True, True],
    }


def test_kinds_of_token(ab):
    assert [edit.tokens for edit in edits(ab, token_variants()).values()] == list(KINDS)


def test_first_heads_and_as_many_at_random(ab):
    order = [(2, 1), (0, 0), (1, 1), (0, 1), (1, 0), (2, 0)]

    def heads(variants):
        found = {}
        for name, edit in edits(ab, variants).items():
            assert (edit.place, edit.tokens) == ("heads", "last prompt")
            kept = edit.add.unflatten(-1, (2, 16)).any(-1)
            found[name] = {tuple(at) for at in kept.nonzero().tolist()}
        return found

    vlm = ab.nb.vlm
    assert list(heads(head_variants(vlm, order)).values()) == [{head} for head in order]
    none = heads(first_heads(vlm, order, [1, 2, 6, 9], draws=0))
    assert list(none.values()) == [{(2, 1)}, {(2, 1), (0, 0)}, {*order}]
    found = heads(first_heads(vlm, order, [1, 2, 6], draws=3))
    drawn = list(found.values())[3:]
    assert [len(each) for each in drawn] == [1, 1, 1, 2, 2, 2]
    assert len({frozenset(each) for each in drawn}) > 3
    assert found == heads(first_heads(vlm, order, [1, 2, 6], draws=3))
    with pytest.raises(InputError, match="at least 0, not -1"):
        first_heads(vlm, order, [1], draws=-1)


def test_places_of_all_layers_and_of_one(ab):
    found = edits(ab, place_variants(3, 2))
    assert [edit.place for edit in found.values()] == ["heads"] * 3 + ["mlp"] * 3
    layers = [[True, True, True], [True, False, False], [False, False, True]]
    assert [edit.add.any(-1).tolist() for edit in found.values()] == layers * 2


def test_components_kept_and_left_out_are_the_whole(ab):
    """And what is left is tried at the whole's norm too."""
    rows = torch.linalg.qr(torch.randn(3, 32, 4, generator=torch.Generator().manual_seed(0))).Q
    directions = ShiftVectors(rows.permute(2, 0, 1))
    found = {n: e.added for n, e in edits(ab, rank_variants(directions, [1, 4])).items()}
    whole = -ab.vectors("layer").values
    for k in (1, 4):
        kept, left = found[f"first k {k}"], found[f"without them {k}"]
        scaled = found[f"without them, at v's norm {k}"]
        torch.testing.assert_close(scaled.norm(dim=-1), whole.norm(dim=-1))
        torch.testing.assert_close(torch.cosine_similarity(scaled, left, dim=-1), torch.ones(3))
        torch.testing.assert_close(kept + left, whole)
        along = torch.einsum("lh,klh->lk", left, directions.values[:k])
        assert along.abs().max() < 1e-5
        wanted = torch.einsum("lh,klh->lk", whole, directions.values[:k]).norm()
        torch.testing.assert_close(kept.norm(), wanted)
    assert len(ab.ranks([1, 32, 33])) == 6  # states are 32 wide


def test_what_belongs_to_no_average_is_left_out(ab):
    kinds = {trial.sample.kind for trial in ab.trials}
    assert {"harmful", "harmful-pair", "benign", "benign-hard"} < kinds
    assert {trial.sample.task for trial in ab.trials} == {"harmful", "benign", "visual"}
    assert "harmful-unseen" not in kinds
    assert all(trial.edit is None for trial in ab.trials)


def test_twins_stand_for_the_benign_requests_where_there_are_any(family_folders, tmp_path):
    model = str(family_folders["llava"])
    nb = Notebook.open("08_x", model=model, data="everyday", out=tmp_path, max_new_tokens=4)
    kinds = {trial.sample.kind for trial in Ablations(nb, 1)._every if not trial.sample.harmful}
    assert {kind for kind in kinds if kind.startswith("benign")} == {
        "benign-twin",
        "benign-twin-picture",
    }


def plain_logits(vlm, trial, place=None, add=None):
    """Logits of the first response token by a plain forward with a hook of its own."""
    inputs = vlm.inputs([trial.text], [trial.load_image()])
    handles = []
    for layer, values in zip(vlm.layers, [] if add is None else add, strict=False):

        def change(module, args, values=values):
            states = args[0].clone()
            states[0, -1] += values
            return (states,)

        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(change))
    found = vlm.model(**inputs).logits[0, -1]
    for handle in handles:
        handle.remove()
    return found


def test_effects_are_changes_of_log_odds_and_of_the_answers_log_probability(ab):
    """Against plain forwards: undone heads at the last prompt token."""
    vlm, order = ab.nb.vlm, [(2, 1), (0, 0)]
    variants = head_variants(vlm, order)
    table = ab.effects(variants, 0.5).set_index(["variant", "measure"])
    v = ab.vectors("heads").values
    for variant, (layer, head) in zip(variants, order, strict=True):
        add = torch.zeros_like(v)
        part = slice(16 * head, 16 * (head + 1))
        add[layer, part] = -0.5 * v[layer, part]
        for measure, task in MEASURES.items():
            changes = []
            for trial in (t for t in ab.trials if t.sample.task == task):
                before, after = plain_logits(vlm, trial), plain_logits(vlm, trial, "heads", add)
                odds = []
                for logits in (before, after):
                    p = logits.softmax(-1)
                    if task == "visual":
                        odds.append(p[before.argmax()].log())
                    else:
                        inside = p[list(OPENERS)].sum()
                        odds.append(inside.log() - (1 - inside).log())
                changes.append(float(odds[1] - odds[0]))
            row = table.loc[(variant.name, measure)]
            assert row["change"] == pytest.approx(np.mean(changes), abs=1e-4)
            assert row["n"] == len(changes)
            assert row["low"] <= row["change"] <= row["high"]
            assert (row["layer"], row["head"], row["alpha"]) == (layer, head, 0.5)


def test_many_variants_at_once_are_what_they_are_alone(ab, monkeypatch):
    variants = [*token_variants(), *layer_variants(3)]
    together = ab.effects(variants, 1.0)
    monkeypatch.setattr(first_token, "TRIALS", 1)
    alone = pd.concat([ab.effects([variant], 1.0) for variant in variants], ignore_index=True)
    assert together["variant"].tolist() == alone["variant"].tolist()
    assert together["change"].to_numpy() == pytest.approx(alone["change"].to_numpy(), abs=1e-4)


def test_heads_are_ranked_on_validation(ab):
    ranking = ab.head_ranking(2)
    assert ranking["change"].is_monotonic_decreasing
    assert set(ordered(ranking)) == {(i, j) for i in range(3) for j in range(2)}
    other = Ablations(ab.nb, 2, "validation", ["harmful refused"])
    again = other.effects(head_variants(ab.nb.vlm, ordered(ranking)), 1.0)
    assert ranking["change"].tolist() == pytest.approx(again["change"].tolist(), abs=1e-5)
    sizes = ab.vectors("heads").values.unflatten(-1, (2, 16)).norm(dim=-1)
    wanted = [float(sizes[head]) for head in ordered(ranking)]
    assert ranking["norm"].tolist() == pytest.approx(wanted)


def test_in_the_invented_world_the_exact_judge_tells_the_openers(nb, monkeypatch):
    """A model that says token 5 to what it refuses, and 7 to all else."""
    refused = [sample.harmful for sample in (*nb.anchors.harmful, *nb.anchors.benign)]
    said = [type("Said", (), {"ids": (5 if no else 7,), "text": ""}) for no in refused]
    outcomes = pd.DataFrame({"outcome": ["refused" if no else "complied" for no in refused]})
    monkeypatch.setattr(nb, "answers", lambda trials: said)
    monkeypatch.setattr(nb, "ask", lambda trials: outcomes)
    monkeypatch.setattr(Ablations, "__post_init__", lambda self: None)
    assert Ablations(nb, 2).openers == (5,)


def test_without_openers_sight_alone_is_measured(nb, monkeypatch):
    monkeypatch.setattr(Ablations, "openers", ())
    ab = Ablations(nb, 2)
    assert ab.measures == ["sight"]
    assert set(ab.effects(token_variants(), 1.0)["measure"]) == {"sight"}
    assert len(ab.head_ranking(1)) == 6


def test_without_questions_too_it_is_whether_the_first_token_is_kept(nb, monkeypatch):
    """Of all requests; undoing more moves it further."""
    monkeypatch.setattr(Ablations, "openers", ())
    ab = Ablations(nb, 2, measures=["harmful refused"])
    assert ab.measures == [KEPT]
    assert {trial.sample.task for trial in ab.trials} == {"harmful", "benign", "visual"}
    (row,) = ab.changes([ab.trials])[0]
    assert (row["measure"], row["n"]) == (KEPT, len(ab.trials))
    assert row["change"] == pytest.approx(0.0, abs=1e-5)
    logits = [plain_logits(ab.nb.vlm, trial) for trial in ab.trials]
    edit = CMRM(ab.vectors("layer"), 1.0)
    after = first_logits(ab.nb.vlm, edited(ab.trials, edit))
    wanted = [
        float(b.log_softmax(-1)[a.argmax()] - a.log_softmax(-1).max())
        for a, b in zip(logits, after, strict=True)
    ]
    (row,) = ab.changes([edited(ab.trials, edit)])[0]
    assert row["change"] == pytest.approx(np.mean(wanted), abs=1e-4)


def test_vectors_have_heads_only_where_they_were_taken():
    v = ShiftVectors(torch.ones(2, 8), provenance={"place": "heads"})
    assert v.heads([(1, 0)], 4).values.tolist() == [[0] * 8, [1] * 4 + [0] * 4]
    assert CMRM(v.heads([(1, 0)], 4), 1.0).place == "heads"
    for bad in ((2, 0), (0, 2), (-1, 0)):
        with pytest.raises(InputError, match="no head"):
            v.heads([bad], 4)
    with pytest.raises(InputError, match="place 'layer'"):
        ShiftVectors(torch.ones(2, 8)).heads([(0, 0)], 4)


def test_a_variant_keeps_to_its_part(ab):
    half = Variant("half", layers=(1,), tokens="text", part=lambda v: v.scaled(0.5))
    edit = ab.edit(half, 2.0)
    wanted = CMRM(ab.vectors("layer"), 1.0, layers=(1,), tokens="text")
    torch.testing.assert_close(edit.added, wanted.added)
    assert (edit.tokens, edit.settings["method"]) == ("text", "half")
