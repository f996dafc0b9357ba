"""Stored tables of several models, made ready for figures."""

import pandas as pd
import pytest

from cmrm_utils.errors import InputError
from cmrm_utils.results import plots
from cmrm_utils.studies import appendix
from cmrm_utils.studies.appendix import (
    anchor_kinds,
    at_dose,
    by_dose,
    layered,
    recipes,
    rises,
    short,
    span,
    spread,
    staged,
    stored,
    unlayered,
)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setattr(appendix, "STORED", tmp_path)
    (tmp_path / "few.csv").write_text("model,alpha,rate\na,0,0.5\nb,0.1,\nnone,0.1,0.75\n")


@pytest.mark.usefixtures("tables")
def test_rows_of_a_stored_table_are_chosen_by_value_or_by_list():
    assert stored("few")["model"].tolist() == ["a", "b", "none"]
    assert stored("few", alpha=0.1)["model"].tolist() == ["b", "none"]
    assert stored("few", model=["a", "none"], alpha=0.1)["rate"].tolist() == [0.75]


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("name", "where", "culprit"),
    [
        ("many", {}, "no stored table many"),
        ("few", {"layer": 3}, "few has no column layer"),
        ("few", {"model": ["a", "c"]}, "few: no row has 'c' in column model"),
    ],
)
def test_what_a_stored_table_lacks_is_named(name, where, culprit):
    with pytest.raises(InputError, match=culprit):
        stored(name, **where)


def test_models_are_told_by_stage_in_the_order_of_training():
    names = ["smollm2-llava-seed2", "organism", "smollm2-llava-refusals05-seed12"]
    rows = staged(pd.DataFrame({"model": [*names, "smollm2-llava-projector", "smollm2-llava"]}))
    assert rows["stage"].tolist() == ["projector alone", "5%", "20%", "20%"]
    assert rows["model"].tolist()[-2:] == ["smollm2-llava-seed2", "smollm2-llava"]
    assert len(spread(rows.assign(rate=1.0), ["stage"])) == 3  # a stage without rows has no row


FRONTIER = pd.DataFrame(
    [
        ("v", 0.0, 0.0, 0.0, 0.75, 0.0, 2.0),
        ("v", 0.1, 0.02, -0.004, 1.0, 0.0, 3.0),
        ("v", 0.2, 0.04, -0.008, 1.0, 0.02, 3.5),
        ("v", 0.5, 0.1, -0.02, 1.0, 0.25, 4.0),
        ("random", 0.0, 0.0, 0.0, 0.75, 0.0, 2.0),
        ("random", 0.1, 0.02, 0.0, 0.75, 0.0, 9.0),
    ],
    columns=["part", "alpha", "dose", "towards", "refused", "twins", "log-odds"],
).assign(stage="20%", model="a", kind="twins")


def test_frontiers_give_edits_at_one_dose():
    edits = at_dose(FRONTIER, 0.1, ["v", "random"])
    assert edits["edit"].tolist() == ["no edit", "v", "random"]
    assert at_dose(FRONTIER, 0.5, ["v"])["alpha"].tolist() == [0.0, 0.5]


def test_frontiers_tell_refusals_by_dose():
    rows = by_dose(FRONTIER.drop(columns="kind")).set_index(["part", "alpha", "kind"])
    assert rows.loc[("v", 0.5, "harmless twins"), ["rate", "edit"]].tolist() == [0.25, "alpha 0.5"]
    assert rows.loc[("v", 0.0, "harmful requests"), ["rate", "edit"]].tolist() == [0.75, "no edit"]


def test_the_best_alpha_of_a_frontier_spares_twins():
    row = recipes(FRONTIER).loc[("20%", "a")]
    assert row.tolist() == pytest.approx([0.2, 0.2, 0.2, 1.5, 0.75])
    assert recipes(FRONTIER, most=0.25).loc[("20%", "a"), "best alpha"] == 0.5
    assert recipes(FRONTIER, most=0.0).loc[("20%", "a"), "best alpha"] == 0.1


def test_seeds_become_a_mean_with_the_lowest_and_the_highest():
    rows = pd.DataFrame(
        [
            ("b", "x", 0.5, 0.0, 1.0, 1, 2),
            ("a", "x", 0.0, 0.0, 0.4, 0, 2),
            ("b", "y", 1.0, 0.7, 1.0, 2, 2),
            ("a", "y", 0.4, 0.1, 0.9, None, 2),
        ],
        columns=["setting", "model", "rate", "low", "high", "hits", "n"],
    )
    table = spread(rows, ["setting"]).set_index("setting")
    assert table.index.tolist() == ["b", "a"]
    assert table.loc["b"].tolist() == [0.75, 0.5, 1.0, 3, 4]
    assert table.loc["a", ["rate", "low", "high"]].tolist() == pytest.approx([0.2, 0.0, 0.4])
    means = spread(rows.assign(hits=None), ["setting"])
    assert means["hits"].isna().all()
    assert "hits" not in spread(rows[["setting", "rate"]], ["setting"])


def test_a_span_is_the_lowest_and_the_highest():
    assert span(pd.Series([0.5, 0.123, 1.0])) == "12.3% to 100.0%"
    assert span(pd.Series([0.5, -1.0]), "{:+.2f}") == "-1.00 to +0.50"


def test_draws_of_one_number_are_one_kind_of_anchors():
    rows = [
        ("number", "1, draw 1", 1),
        ("number", "1, draw 2", 1),
        ("family", "theft", 60),
        ("image", "noise", 200),
    ]
    sets = pd.DataFrame(rows, columns=["varied", "set", "size"])
    assert anchor_kinds(sets).tolist() == ["1 harmful", "1 harmful", "one family", "noise"]


EFFECTS = pd.DataFrame(
    [
        ("layers", "from it on 14"),
        ("layers", "alone 0"),
        ("tokens", "last prompt"),
        ("places", "attention all"),
        ("places", "attention 7"),
        ("heads", "heads random k 16 draw 0"),
        ("rank", "first k 4"),
        ("rank", "without them 4"),
        ("rank", "without them, at v's norm 4"),
    ],
    columns=["section", "variant"],
)


def test_effects_of_layers_say_which_and_all_others_are_named_plainly():
    assert layered(EFFECTS)[["layers", "layer"]].to_numpy().tolist() == [
        ["from it on", 14],
        ["alone", 0],
    ]
    assert unlayered(EFFECTS)["variant"].tolist() == [
        "tokens: last prompt",
        "undone: attention",
        "heads: random 16",
        "components: first 4",
        "components: without 4",
        "components: without 4, v's norm",
    ]


def test_every_stored_effect_is_drawn_but_single_places():
    effects = stored("smollm2_ablations")
    left = set(effects["variant"]) - set(effects.loc[unlayered(effects).index, "variant"])
    left -= set(effects.loc[layered(effects).index, "variant"])
    assert all(name.split()[0] in ("attention", "MLPs") and name[-1].isdigit() for name in left)


def test_a_rise_is_the_fall_of_unsafe_and_neither_together():
    rows = [
        ("unsafe", 0.0, 0.5),
        ("neither", 0.0, 0.1),
        ("unsafe", 0.1, 0.1),
        ("neither", 0.1, 0.3),
    ]
    parts = pd.DataFrame(
        [
            (measure, part, alpha, model, rate if part == "v" else 0.25)
            for model in ("b", "a")
            for part in ("v", "random")
            for measure, alpha, rate in [*rows, ("utility", 0.1, 0.9)]
        ],
        columns=["measure", "part", "alpha", "model", "rate"],
    )
    table = rises(parts, 0.1)
    assert table.index.tolist() == ["b", "a"]
    assert table["v"].tolist() == pytest.approx([20, 20])
    assert table["random"].tolist() == pytest.approx([0, 0])


def test_short_names_are_no_image_conditions():
    names = short(pd.Series(["organism", "organism-seed1", "organism-caption"]))
    assert names.tolist() == ["organism", "seed1", "captions"]
    assert not set(names) & set(plots.CONDITION_NAMES)


def test_a_setting_that_lifts_on_every_seed_spares_twins_or_not():
    rows = [
        ("a", "1", "harmful refused", 2.0, 1.5, 2.5),
        ("a", "1", "benign refused", 0.5, 0.2, 0.7),
        ("a", "2", "harmful refused", 2.0, 1.5, 2.5),
        ("a", "2", "benign refused", 0.5, 0.2, 0.8),
        ("b", "1", "harmful refused", 2.0, 0.9, 2.5),
        ("b", "1", "benign refused", 0.0, 0.0, 0.0),
    ]
    columns = ["method", "setting", "measure", "change", "low", "high"]
    found = appendix.lifting(pd.DataFrame(rows, columns=columns))
    assert found.index.tolist() == [("a", "1"), ("a", "2")]
    assert found["spared"].tolist() == [True, False]
    assert found["twins"].tolist() == [0.5, 0.5]


def test_the_best_setting_keeps_sight_and_lifts_harmful_requests_above_twins():
    rows = [
        (method, setting, measure, change)
        for method, setting, *changes in [
            ("a", "1", 1.0, 0.0, -0.1),
            ("a", "2", 3.0, 1.0, -0.9),
            ("a", "3", 9.0, 0.0, -1.1),
            ("b", "1", -2.0, -1.0, 0.0),
            ("c", "1", 5.0, 0.0, -4.0),
        ]
        for measure, change in zip(
            ("harmful refused", "benign refused", "sight"), changes, strict=True
        )
    ]
    first = pd.DataFrame(rows, columns=["method", "setting", "measure", "change"])
    found = appendix.best_settings(first)
    assert found.index.tolist() == [("a", "2"), ("b", "1")]
    assert found.loc[("a", "2")].tolist() == [3.0, 1.0, -0.9]
    assert list(found) == ["harmful", "twins", "sight"]


def test_answers_are_of_the_tables():
    asked = {
        name: appendix.spread(appendix.stored(f"smollm2_{name}"), *how)
        for name, how in appendix.QUESTIONS.items()
    }
    found = appendix.answers(asked)
    assert found.keys() == appendix.QUESTIONS.keys()
    sight = asked["entanglement"].query("edit == 'CMRM 0.2' and measure == 'sight'")["change"]
    assert f"sight by {sight.item():+.2f}," in found["entanglement"]
    assert not any("nan" in text for text in found.values())
