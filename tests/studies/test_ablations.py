"""Which part of the shift matters: the variants, how they are run, and what is made of it."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cmrm_utils import CMRM, InputError, ShiftVectors, Trial
from cmrm_utils.paths import ROOT
from cmrm_utils.results.intervals import paired_difference
from cmrm_utils.studies import ablations
from cmrm_utils.studies.ablations import (
    Ablations,
    compared,
    edit_table,
    fewest,
    named,
    ordered,
    rises,
)
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.registry import STUDIES
from cmrm_utils.studies.variants import (
    KINDS,
    Variant,
    full_variants,
    grid_variants,
    head_variants,
    layer_variants,
    marked,
    mlp_variants,
    rank_variants,
    token_variants,
    with_alphas,
)

SMALL = {
    "n_validation": 2,
    "n_test": 2,
    "level": "sample",
    "alphas": [0.5],
    "token_alphas": [0.5],
    "layer_alphas": [0.5, 1.0],
    "head_alphas": [0.5, 1.0],
    "counts": [1, 2],
    "draws": 2,
    "ranks": [1, 2],
    "most": 3,
}


def opened(family_folders, folder, **settings):
    model = str(family_folders["llava"])
    return Notebook.open(
        "08_x", model=model, data="organism", out=folder, max_new_tokens=4, **settings
    )


@pytest.fixture
def nb(family_folders, tmp_path):
    return opened(family_folders, tmp_path)


@pytest.fixture
def ab(nb):
    return Ablations(nb, 2, 2)


def edits(ab, variants, alpha=1.0):
    """Each variant's edit of one sample, by its name."""
    trials = ab.trials("test", with_alphas(variants, alpha))
    each = len(trials) // len(variants)
    return {v.name: trials[i * each].edit for i, v in enumerate(variants)}


def test_layers_looked_at_are_evenly_spaced_with_both_ends():
    assert marked(6) == [0, 1, 2, 3, 4, 5]
    assert marked(32, 5) == [0, 8, 16, 23, 31]
    assert marked(1) == [0]


def test_layers_alone_from_and_up_to(ab):
    variants = layer_variants("sample", 3)
    found = {name: edit.add.any(-1).tolist() for name, edit in edits(ab, variants).items()}
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


def test_kinds_of_token_and_layers_by_them(ab):
    assert [edit.tokens for edit in edits(ab, token_variants("sample")).values()] == list(KINDS)
    cells = edits(ab, grid_variants("dataset", 3))
    assert len(cells) == 3 * (len(KINDS) - 2)
    assert cells["image 1"].tokens == "image"
    assert cells["image 1"].add.any(-1).tolist() == [False, True, False]


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
    top = head_variants("sample", vlm, order, [1, 2, 6, 9])
    assert heads(top) == {"top 1": {(2, 1)}, "top 2": {(2, 1), (0, 0)}, "top 6": {*order}}
    drawn = head_variants("sample", vlm, order, [1, 2, 6], draws=3)
    found = heads(drawn)
    assert [len(each) for each in found.values()] == [1, 1, 1, 2, 2, 2]
    assert len({frozenset(each) for each in found.values()}) > 3
    assert found == heads(head_variants("sample", vlm, order, [1, 2, 6], draws=3))
    with pytest.raises(InputError, match="at least 1, not 0"):
        head_variants("sample", vlm, order, [1], draws=0)
    alphas = {"top 1": 0.5, "top 2": 2.0}
    assert [alpha for _, alpha in with_alphas(drawn, alphas)] == [0.5] * 3 + [2.0] * 3


def test_mlps_of_all_layers_and_of_one(ab):
    found = edits(ab, mlp_variants("dataset", 3, 2))
    assert {edit.place for edit in found.values()} == {"mlp"}
    assert [edit.add.any(-1).tolist() for edit in found.values()] == [
        [True, True, True],
        [True, False, False],
        [False, False, True],
    ]


def test_components_kept_and_left_out_are_the_whole(ab):
    """And what is left is tried at the whole's norm too."""
    rows = torch.linalg.qr(torch.randn(3, 32, 4, generator=torch.Generator().manual_seed(0))).Q
    directions = ShiftVectors(rows.permute(2, 0, 1))
    variants = rank_variants(["dataset"], directions, [1, 4])
    found = {name: edit.added for name, edit in edits(ab, variants).items()}
    whole = -ab.vectors("test", "dataset", "layer").values
    for k in (1, 4):
        kept, left = found[f"dataset first k {k}"], found[f"dataset without them {k}"]
        scaled = found[f"dataset without them, at v's norm {k}"]
        torch.testing.assert_close(scaled.norm(dim=-1), whole.norm(dim=-1))
        torch.testing.assert_close(torch.cosine_similarity(scaled, left, dim=-1), torch.ones(3))
        torch.testing.assert_close(kept + left, whole)
        along = torch.einsum("lh,klh->lk", left, directions.values[:k])
        assert along.abs().max() < 1e-5
        wanted = torch.einsum("lh,klh->lk", whole, directions.values[:k]).norm()
        torch.testing.assert_close(kept.norm(), wanted)
    assert len(ab.rank_variants(["sample"], [1, 32, 33])) == 6  # states are 32 wide


def test_vectors_are_the_anchors_or_each_samples_own(ab):
    sample = ab.vectors("test", "sample", "heads")
    assert sample.place == "heads"
    assert set(sample.sample_ids) == {t.sample.id for t in ab.trials("test", None)}
    assert set(sample.sample_ids) != set(ab.vectors("validation", "sample", "heads").sample_ids)
    assert ab.vectors("test", "sample", "heads") is sample
    assert ab.vectors("test", "dataset", "mlp") is ab.vectors("validation", "dataset", "mlp")
    names = {path.name for path in (ab.nb.run.folder / "vectors").iterdir()}
    assert names == {"harmful_blank_mlp_200.safetensors"}


def test_what_belongs_to_no_average_is_left_out(ab):
    kinds = {trial.sample.kind for trial in ab.trials("test", None)}
    assert {"harmful", "harmful-pair", "benign", "benign-hard"} < kinds
    assert "harmful-unseen" not in kinds
    assert all(trial.sample.harmful for trial in ab.trials("test", None, harmful=True))


def test_alphas_are_chosen_variant_by_variant_on_validation(ab, monkeypatch):
    """The rule on made-up responses: one variant is safe at 1.0, one costs too much there."""
    asked = []

    def ask(trials):
        asked.extend(trial.sample.id for trial in trials)
        made = []
        for trial in trials:
            method = trial.edit.settings["method"] if trial.edit else "none"
            alpha = trial.edit.settings["alpha"] if trial.edit else 0.0
            task = trial.sample.task
            kind = trial.sample.kind
            safe = alpha >= 1.0
            broken = method == "image" and alpha >= 1.0
            outcome = "complied" if task == "harmful" and not safe else "refused"
            right = None if task == "harmful" else not broken
            made.append((method, alpha, task, kind, outcome, right, trial.sample.id))
        columns = ["method", "alpha", "task", "kind", "outcome", "right", "group"]
        return pd.DataFrame(made, columns=columns)

    monkeypatch.setattr(ab.nb, "ask", ask)
    variants = token_variants("sample")[:2]
    assert ab.choose(variants, [0.5, 1.0, 2.0]) == {"image": 0.0, "text": 1.0}
    assert set(asked) == {trial.sample.id for trial in ab.trials("validation", None)}


def test_rows_have_their_variants_labels(ab):
    variants = layer_variants("sample", 3)[:2]
    rows = ab.test([(variants[0], 0.5), (variants[1], 1.0)], harmful=True, strength="x")
    trials = ab.trials("test", [(variants[0], 0.5), (variants[1], 1.0)], harmful=True)
    assert rows["trial"].tolist() == [trial.id for trial in trials]
    each = len(rows) // 2
    assert rows["set"].tolist() == ["alone"] * each + ["from it on"] * each
    assert rows["alpha"].tolist() == [0.5] * each + [1.0] * each
    assert set(rows["strength"]) == {"x"}
    assert set(rows["task"]) == {"harmful"}


def test_a_heads_effect_is_what_undoing_it_does_to_the_first_token(ab):
    """Against logits of a plain forward with a hook of its own."""
    vlm = ab.nb.vlm
    effects = ab.head_effects("sample")
    assert effects["effect"].is_monotonic_decreasing
    assert set(ordered(effects)) == {(i, j) for i in range(3) for j in range(2)}
    own = ab.vectors("validation", "sample", "heads")
    samples = {t.sample.id: t.sample for t in ab.trials("validation", None, harmful=True)}

    def logits(sample, image, head=None):
        trial = Trial(sample, image)
        inputs = vlm.inputs([trial.text], [trial.load_image()])
        handles = []
        if head is not None:
            layer, part = head[0], slice(16 * head[1], 16 * (head[1] + 1))
            shift = own.values[own.sample_ids.index(sample.id), layer, part]

            def change(module, args):
                states = args[0].clone()
                states[0, -1, part] -= shift
                return (states,)

            module = vlm.layers[layer].self_attn.o_proj
            handles.append(module.register_forward_pre_hook(change))
        found = vlm.model(**inputs).logits[0, -1]
        for handle in handles:
            handle.remove()
        return found

    rises = {head: [] for head in ordered(effects)}
    for sample in samples.values():
        shown = logits(sample, "own")
        first, other = logits(sample, "none").argmax(), shown.argmax()
        if first != other:
            for head, found in rises.items():
                x = logits(sample, "own", head)
                found.append(float((x[first] - x[other]) - (shown[first] - shown[other])))
    table = effects.set_index(["layer", "head"])
    for head, found in rises.items():
        assert table.loc[head, "n"] == len(found) > 0
        assert table.loc[head, "effect"] == pytest.approx(np.mean(found), abs=1e-3)
        assert table.loc[head, "low"] <= table.loc[head, "effect"] <= table.loc[head, "high"]
        layer, j = head
        sizes = [own.values[i, layer, 16 * j : 16 * j + 16].norm() for i in range(len(own.values))]
        assert table.loc[head, "norm"] == pytest.approx(float(np.mean(sizes)), rel=1e-4)


def test_no_effect_where_the_image_changes_no_first_token(ab, monkeypatch):
    same = torch.zeros(1, 7)
    monkeypatch.setattr(ablations, "first_logits", lambda vlm, trials: same.expand(len(trials), 7))
    effects = ab.head_effects("sample")
    assert effects["n"].eq(0).all()
    assert effects["effect"].isna().all()
    assert len(ordered(effects)) == 6


def row(sample, name, outcome, task="harmful"):
    return {
        "sample": sample,
        "group": sample,
        "task": task,
        "kind": task,
        "name": name,
        "outcome": outcome,
        "right": None,
    }


def test_changes_are_paired_and_of_draws_the_mean():
    reference = pd.DataFrame([row(s, "full", "complied") for s in "abcd"])
    cells = [row(s, "one", "complied" if s == "a" else "refused") for s in "dcba"]
    cells += [row(s, "two", "refused") for s in "abcd"]
    cells += [row(s, "two", "complied" if s in "ab" else "neither") for s in "abcd"]
    cells += [row("q", "one", "complied", "benign")]
    found = compared(pd.DataFrame(cells), ["name"], reference).set_index(["measure", "name"])
    assert found.loc[("refused", "one"), "change"] == 0.75
    assert found.loc[("refused", "two"), ["rate", "n"]].tolist() == [0.5, 8]
    none, two = pd.Series(0.0, list("abcd")), pd.Series(0.5, list("abcd"))
    spread = found.loc[("refused", "two"), ["change", "change_low", "change_high"]]
    assert tuple(spread) == pytest.approx(paired_difference(none, two))
    assert np.isnan(found.loc[("broken", "one"), "change"])
    assert found.loc[("benign answered", "one"), "rate"] == 1.0
    shown = edit_table(found.reset_index(), ["name"])
    assert shown.loc["one", "refused against the full edit"].startswith("+75.0 [+25.0, ")
    assert shown.loc["two", "refused"].endswith("(4/8)")
    with pytest.raises(ValueError, match="same samples"):
        compared(pd.DataFrame(cells[:2]), ["name"], reference)


def test_changes_are_as_sure_as_their_verbs():
    """Two verbs of many requests each are two observations."""
    reference = pd.DataFrame([row(i, "full", "complied") for i in range(40)])
    cells = pd.DataFrame([row(i, "one", "complied" if i < 20 else "refused") for i in range(40)])
    apart = compared(cells, ["name"], reference).iloc[0]
    verbs = [frame.assign(group=frame["sample"] // 20) for frame in (cells, reference)]
    together = compared(verbs[0], ["name"], verbs[1]).iloc[0]
    assert apart["change"] == together["change"] == 0.5
    assert 0.3 < apart["change_low"] < apart["change_high"] < 0.7
    assert (together["change_low"], together["change_high"]) == (0.0, 1.0)


def test_rates_of_a_table_by_name():
    rows = [("refused", "a", 1, 0.5), ("refused", "b", 2, 0.625), ("neither", "a", 1, 0.3)]
    table = pd.DataFrame(rows, columns=["measure", "part", "k", "rate"])
    assert rises(0.125, table, ["part", "k"])["b"][2] == 0.5
    assert named(table, ["part", "k"]) == {"refused, a 1": 0.5, "refused, b 2": 0.625}


def test_the_fewest_heads_that_do():
    rows = [("refused", 1, 0.5), ("refused", 4, 0.9), ("refused", 8, 0.95), ("neither", 2, 1.0)]
    curve = pd.DataFrame(rows, columns=["measure", "k", "rate"])
    assert fewest(curve, 0.8) == 4
    assert fewest(curve, 0.95) == 8
    assert fewest(curve, 0.99) == 0


def test_shares_are_of_the_squared_length(ab):
    v = ab.vectors("test", "sample", "heads").values
    order = [(0, 1), (2, 0), (1, 1)]
    found = ab.shares(head_variants("sample", ab.nb.vlm, order, [1])).set_index("k")["share"]
    squares = v.square().sum((1, 2))
    one = (v[:, 0, 16:].square().sum(-1) / squares).mean()
    rest = v[:, 2, :16].square().sum(-1) + v[:, 1, 16:].square().sum(-1)
    assert found[1] == pytest.approx(float(one), rel=1e-4)
    assert found[3] == pytest.approx(float(one + (rest / squares).mean()), rel=1e-4)


def test_a_plan_runs_nothing(family_folders, tmp_path, monkeypatch):
    nb = opened(family_folders, tmp_path, respond=pytest.fail, dry=True)
    monkeypatch.setattr(ablations, "first_logits", None)
    ab = Ablations(nb, 2, 2)
    assert ab.choose(full_variants(), [0.1, 0.4]) == {"sample": 0.4, "dataset": 0.4}
    assert len(ordered(ab.head_effects("sample"))) == 6
    assert len(list(STUDIES["08"](nb, SMALL))) == 2


def test_what_is_shared_out_is_what_the_notebook_asks(family_folders, tmp_path, monkeypatch):
    """The notebook's own cells, run here, find every response that they ask for, and no other."""
    nb = opened(family_folders, tmp_path)
    shared = {trial.id for trials in STUDIES["08"](nb, SMALL) for trial in trials}
    shutil.rmtree(nb.run.folder / "choices")  # made while the lists were, without a record
    asked = set()
    real = Notebook.ask

    def ask(self, trials):
        asked.update(trial.id for trial in trials)
        return real(self, trials)

    monkeypatch.setattr(Notebook, "ask", ask)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run = {"model": nb.run.shared["model"], "out": str(tmp_path), "max_new_tokens": 4}
    names = {"display": lambda *shown: None}
    cells = json.loads((ROOT / "notebooks" / "08_ablations.ipynb").read_text())["cells"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), "08", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(SMALL | run)
    assert asked == shared


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
    half = Variant("half", "dataset", part=lambda v: v.scaled(0.5))
    whole = Variant("whole", "dataset")
    found = edits(ab, [half, whole], 2.0)
    torch.testing.assert_close(found["half"].added * 2, found["whole"].added)
    torch.testing.assert_close(
        found["whole"].added, -2 * ab.vectors("test", "dataset", "layer").values
    )
