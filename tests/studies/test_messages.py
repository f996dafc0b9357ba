"""What figures say, and what stored tables say."""

import pandas as pd
import pytest

from cmrm_utils.paths import STORED
from cmrm_utils.studies import anatomy, evaluation, intervention, messages, verdicts
from cmrm_utils.studies.selection import Choice
from cmrm_utils.studies.sweep import Chosen

RATES = pd.DataFrame(
    [("refused", "none", 0.9), ("refused", "own", 0.4), ("answered", "own", 0.6)],
    columns=["measure", "image", "rate"],
)
CURVES = pd.DataFrame(
    [("refused", "CMRM sample", 0.0, 0.4), ("refused", "CMRM sample", 0.2, 0.5)],
    columns=["measure", "method", "alpha", "rate"],
)


def test_conditions():
    said = messages.conditions(RATES, by="image", text="none", shown="own")
    assert said == "As text 90.0% of harmful requests are refused, beside the own image 40.0%"
    alone = messages.conditions(RATES, by="image", text="none", shown="none")
    assert alone == "As text 90.0% of harmful requests are refused"


def test_variance():
    maps = pd.DataFrame({"layer": [0, 0, 3], "share1": [0.4, 0.4, 0.1], "share2": [0.2, 0.2, 0.1]})
    assert messages.variance(maps) == "Two axes show 20% to 60% of the variance"
    assert messages.variance(maps.head(2)) == "Two axes show 60% of the variance"


def test_distance_and_silhouette():
    rows = pd.DataFrame(
        {
            "layer": [0, 1, 1],
            "image": ["own", "own", "none"],
            "distance": [0.3, 0.1, 9.0],
            "silhouette": [0.9, 0.25, 0.5],
        }
    )
    assert "at most 30% of its norm (layer 0)" in messages.distance(rows)
    assert "silhouette 0.50 as text, 0.25 beside the own image" in messages.apart(rows)


def test_ends():
    rows = pd.DataFrame({"layer": [1, 0], "norm": [9.0, 1.0]})
    assert messages.ends(rows, "norm", "Norm", "{:.0f}") == (
        "Norm: 1 in the first layer, 9 in the last"
    )


def test_anchors():
    curve = pd.DataFrame({"anchors": [1, 8, 32], "cosine": [0.5, 0.9, 0.99]})
    said = messages.anchors(curve, 40)
    assert said == "The vector of 8 anchors has cosine 0.90 with that of all 40"


def test_towards():
    said = messages.towards(pd.Series([-0.5, 0.25, 0.1]))
    assert said.endswith("-0.05 on average, -0.50 to +0.25 over the layers")


def test_strongest():
    said = messages.strongest(CURVES, "CMRM sample", ("refused", "choices"))
    assert said == "CMRM sample, from no edit to alpha 0.2: refused 40.0% to 50.0%"
    alone = messages.strongest(CURVES.head(1), "CMRM dataset", ("refused",))
    assert alone == "Without an edit: refused 40.0%"


def test_changed():
    changes = pd.DataFrame(
        {"measure": ["refused", "choices"], "method": ["CMRM", "CMRM"], "change": [-0.05, 0.5]}
    )
    said = messages.changed(changes, "method", ("CMRM", "random 0"), "refused")
    assert said == "Change of refused in points: CMRM -5.0"


def test_frontier():
    rows = pd.DataFrame(
        {
            "method": ["a", "a", "b"],
            "alpha": [0.0, 0.1, 0.2],
            "refused": [0.4, 0.6, 0.6],
            "utility": [0.9, 0.7, 0.8],
        }
    )
    said = messages.frontier(rows)
    assert said.startswith("Most refused: b at alpha 0.2, 60.0% at 80.0% of utility;")
    assert said.endswith("without an edit 40.0% at 90.0%")


def test_predictions_about_the_intervention():
    back = pd.DataFrame({"own image": [0.1, 0.2], "edited": [0.2, 0.1]})
    rates = pd.DataFrame(
        {
            "refused": [0.9, 0.8, 1.0],
            "over-refusal": [0.0, 0.0, 0.9],
            "benign answered": [1.0, 0.95, 0.1],
        },
        index=["no edit", "CMRM", "refusal direction"],
    )
    found = [so for _, (so, _) in intervention.predictions(back, rates)]
    assert found == [True, False, False]
    rates["visual questions"] = [0.9, 0.3, 0.9]
    found = [so for _, (so, _) in intervention.predictions(back[::-1], rates)]
    assert found == [False, True, False]


@pytest.mark.parametrize(("alpha", "own", "wanted"), [(0.2, 0.5, [True, True, True])])
def test_predictions_about_safety(alpha, own, wanted):
    tested = RATES.replace({"none": "text only", "own": "own image"})
    tested = tested.rename(columns={"image": "setting"}).replace(0.4, own)
    chosen = Chosen({}, {"CMRM sample": Choice({"alpha": alpha}, None, "")})
    found = evaluation.predictions(chosen, CURVES, tested, "own image")
    assert [so for _, (so, _) in found] == wanted
    none = Chosen({}, {"CMRM sample": Choice(None, None, "why")})
    falling = CURVES.assign(rate=[0.5, 0.4])
    found = evaluation.predictions(none, falling, tested.replace(own, 0.85), "own image")
    assert [so for _, (so, _) in found] == [False, False, False]
    assert not list(evaluation.predictions(Chosen({}, {}), CURVES, tested, "own image"))


def test_verdicts_are_those_of_the_stored_tables():
    headline = pd.read_csv(STORED / "smollm2_headline.csv")
    row = headline[(headline["setting"] == "own image") & (headline["measure"] == "refused")]
    row = row[row["requests"] == "harmful"].iloc[0]
    said = verdicts.of_test("own image")
    assert said.startswith(f"{row['hits'] / row['n']:.1%} [")
    assert said.endswith(f"of {row['n']:.0f}")
    curves = pd.read_csv(STORED / "smollm2_curves.csv")
    these = curves[(curves["measure"] == "refused") & (curves["alpha"] == 0.2)]
    these = these[these["method"] == "CMRM dataset"]
    assert len(these) == 3  # seeds
    counts = these[["hits", "n"]].sum()
    wanted = f"{counts['hits'] / counts['n']:.1%} of {counts['n']:.0f}"
    assert verdicts.swept("refused", 0.2) == wanted
    assert verdicts.kept("visual questions", "own image").endswith(" of 360")
    assert verdicts.controlled("refused", "no edit").endswith(" of 288")
    assert verdicts.refusal_cosine().count(".") == 3


TRIED = pd.DataFrame(
    [
        ("v", 0.0, 0.9, 0.0),
        ("v", 0.5, 0.1, 0.0),
        ("v without refusal", 0.5, 0.3, 0.0),
        ("refusal direction", 0.5, 1.0, 0.75),
    ],
    columns=["part", "alpha", "refused", "twins"],
)


@pytest.mark.parametrize(
    ("without", "twins", "spared", "wanted"),
    [(0.1, 0.0, 0.3, [True, False, False]), (0.6, 0.8, 0.05, [False, True, True])],
)
def test_predictions_about_the_anatomy(without, twins, spared, wanted):
    ablated = pd.DataFrame(
        [
            ("refused", "nothing", 0.9),
            ("refused", "refusal direction", without),
            ("answered", "nothing", 0.1),
        ],
        columns=["measure", "taken out", "rate"],
    )
    tried = TRIED.set_index(["part", "alpha"])
    tried.loc[("v", 0.5), "twins"] = twins
    tried.loc[("v without refusal", 0.5), "refused"] = spared
    found = list(anatomy.predictions(ablated, tried.reset_index()))
    assert [so for _, (so, _) in found] == wanted
    assert found[0][1][1] == f"Refused 90.0% with nothing taken out, {without:.1%} without it."


def test_what_directions_do_at_the_largest_alpha():
    assert messages.twins(TRIED) == (
        "At alpha 0.5 v refuses 10% of harmful requests and 0% of twins, the refusal direction "
        "refuses 100% of harmful requests and 75% of twins"
    )


def test_cosines_are_told_by_their_mean_in_order():
    rows = pd.DataFrame({"pair": ["b", "a", "b"], "layer": [0, 0, 1], "cosine": [0.5, -0.25, 1.0]})
    assert messages.directions(rows) == "Cosines, mean over the layers: b +0.75, a -0.25"


def test_areas_that_leave_out_chance_are_counted():
    areas = pd.DataFrame({"low": [0.6, 0.1, 0.4, float("nan")], "high": [0.9, 0.4, 0.6, 0.7]})
    assert messages.told_apart(areas) == "The 95% interval leaves out chance in 2 of 4 cases"


def test_values_are_told_by_name_as_far_as_they_are_there():
    values = pd.Series({"own": 1.234, "v": -0.5})
    assert messages.told("Nats", values, ["v", "w", "own"]) == "Nats: v -0.50, own image +1.23"


def test_settings_that_spare_twins_and_sight_are_named():
    cells = {
        ("a", "x"): (2.0, 0.5, -0.5),
        ("b", "x"): (2.0, 1.5, 0.0),
        ("c", "x"): (2.0, 0.0, -3.0),
        ("d", "x"): (0.5, 0.0, 0.0),
    }
    names = ["harmful", "twins", "sight"]
    rows = pd.DataFrame(
        [(*key, *one) for key, three in cells.items() for one in zip(names, three, strict=True)],
        columns=["method", "setting", "measure", "change"],
    )
    said = messages.selective(rows, names)
    assert said.startswith("3 of 4 settings lift")
    assert said.endswith("spared by a (x)")
    assert messages.selective(rows[rows["method"] == "b"], names).endswith("spared by none")
    assert messages.selective(rows[rows["measure"] == "sight"], names) == "4 settings"
