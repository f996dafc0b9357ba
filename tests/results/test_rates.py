import numpy as np
import pandas as pd
import pytest

from cmrm_utils import InputError
from cmrm_utils.judges.agreement import agreement, judge_agreement
from cmrm_utils.judges.fluency import repetition
from cmrm_utils.results.intervals import (
    area_under_curve,
    bootstrap,
    clustered_interval,
    clusters,
    paired_difference,
    wilson,
)
from cmrm_utils.results.rates import (
    choice_accuracy,
    measures,
    paired_changes,
    rates,
    trade_off,
    utility,
)
from cmrm_utils.results.text import (
    markdown_table,
    percent,
    percent_table,
    rendered,
    without_counts,
)
from cmrm_utils.studies import selection
from cmrm_utils.studies.gap import layer_maps, layer_separability, separability
from cmrm_utils.studies.selection import choose_alpha, qualifying


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe (1998), table I, and the plain cases
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_of_impossible_counts(hits, n):
    with pytest.raises(ValueError, match="hits of"):
        wilson(hits, n)


def width(interval):
    return interval[1] - interval[0]


def test_clusters_widen_the_interval():
    together = np.repeat([1, 0, 1, 0, 0, 1, 1, 0, 0, 1], 20)  # each verb all or nothing
    groups = np.repeat(np.arange(10), 20)
    plain = wilson(together.sum(), len(together))
    clustered = clustered_interval(together, groups)
    assert width(clustered) > 3 * width(plain)
    # 200 items say no more than ten clusters do, less the one that the mean takes
    assert clustered == pytest.approx(wilson(4.5, 9))
    spread = np.tile([1, 0], 100)
    assert clustered_interval(spread, groups) == pytest.approx(wilson(100, 200), abs=1e-9)


def test_clusters_of_one_are_plain():
    hits = np.random.default_rng(0).random(300) < 0.3
    found = clustered_interval(hits, list(range(300)))
    assert found == pytest.approx(wilson(hits.sum(), 300), abs=1e-3)


def test_clusters_are_found_by_name_in_any_order():
    rng = np.random.default_rng(0)
    groups = np.array([f"verb {i}" for i in rng.integers(0, 8, 100)])
    hits = (np.char.str_len(groups) > 0) & (rng.random(100) < 0.5)
    order = rng.permutation(100)
    first = clustered_interval(hits, groups.tolist())
    assert clustered_interval(hits[order], groups[order].tolist()) == pytest.approx(first)


@pytest.mark.parametrize("hits", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_all_or_none(hits):
    assert clustered_interval(hits, ["a", "a", "b", "b"]) == wilson(sum(hits), 4)


def test_one_cluster_is_plain():
    assert clustered_interval([0, 1, 1, 0], ["a"] * 4) == wilson(2, 4)


def test_fixed_strata_are_no_variance():
    """One kind always, the other at times: only the second varies from verb to verb."""
    verbs = np.repeat([1, 1, 0, 0, 0, 0, 0, 0, 1, 0], 10)  # each verb all or nothing
    hits = [1] * 100 + verbs.tolist()
    groups = [f"p{i // 10}" for i in range(100)] + [f"v{i // 10}" for i in range(100)]
    strata = ["pair"] * 100 + ["verb"] * 100
    rest = 10 * (verbs[::10] - 0.3)
    variance = (rest**2).sum() / 200**2 * 20 / 18
    size = 0.65 * 0.35 / variance
    apart = clustered_interval(hits, groups, strata)
    assert apart == pytest.approx(wilson(0.65 * size, size))
    assert width(apart) < 0.75 * width(clustered_interval(hits, groups))
    assert clustered_interval(hits, groups, ["one"] * 200) == clustered_interval(hits, groups)


def test_strata_of_independent_items_are_no_surer_than_their_number():
    hits, alone = [1] * 100 + [0] * 100, list(range(200))
    assert clustered_interval(hits, alone, hits) == wilson(100, 200)


def test_clusters_that_reach_over_strata_move_them_together():
    """A topic asked in two manners is one topic: its two answers are not independent."""
    rng = np.random.default_rng(0)
    topic = rng.random(40) < 0.5
    hits = np.concatenate([topic, topic])
    strata = ["plain"] * 40 + ["picture"] * 40
    own = clustered_interval(hits, list(range(80)), strata)
    shared = clustered_interval(hits, list(range(40)) * 2, strata)
    assert width(shared) == pytest.approx(np.sqrt(2) * width(own), rel=0.05)


def test_strata_keep_their_coverage():
    """Of 400 draws of a design with two kinds and clusters, about 95% hold the truth."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        chance = np.concatenate([rng.beta(18, 2, 24), rng.beta(2, 6, 24)])
        hits = rng.random((48, 5)) < chance[:, None]
        groups, kinds = np.repeat(np.arange(48), 5), np.repeat([0, 1], 120)
        low, high = clustered_interval(hits.ravel(), groups.tolist(), kinds.tolist())
        inside += low <= (0.9 + 0.25) / 2 <= high
    assert 0.92 <= inside / 400 <= 0.99


def test_rates_take_kinds_for_strata():
    rows = pd.DataFrame(
        {
            "kind": ["pair"] * 50 + ["verb"] * 50,
            "hit": [True] * 60 + [False] * 40,
            "group": range(100),
            "image": "own",
        }
    )
    found = rates(rows, "hit", ["image"]).iloc[0]
    assert (found["low"], found["high"]) == clustered_interval(
        rows["hit"], rows["group"].tolist(), rows["kind"].tolist()
    )
    pooled = rates(rows.drop(columns="kind"), "hit", ["image"]).iloc[0]
    assert found["high"] - found["low"] < pooled["high"] - pooled["low"]


def test_rates():
    rows = pd.DataFrame(
        {
            "kind": ["harmful"] * 4 + ["benign"] * 3,
            "image": ["own", "own", "none", "own", "own", "own", "own"],
            "group": list("abcdefg"),
            "hit": pd.array([True, False, True, True, None, False, False], dtype="boolean"),
        }
    )
    found = rates(rows, "hit", ["kind", "image"], group=None)
    assert list(found.columns) == ["kind", "image", "rate", "low", "high", "hits", "n"]
    assert found[["kind", "image", "hits", "n"]].values.tolist() == [
        ["harmful", "own", 2, 3],
        ["harmful", "none", 1, 1],
        ["benign", "own", 0, 2],
    ]
    assert found["rate"].tolist() == pytest.approx([2 / 3, 1, 0])
    assert found[["low", "high"]].values[0].tolist() == pytest.approx(wilson(2, 3))
    clustered = rates(rows.assign(group="one"), "hit", ["image"])
    assert clustered["n"].tolist() == [5, 1]


def test_rates_use_the_clusters():
    rows = pd.DataFrame(
        {"k": "x", "hit": [True] * 10 + [False] * 10, "group": ["a"] * 10 + ["b"] * 10}
    )
    clustered, plain = (rates(rows, "hit", ["k"], group=g).iloc[0] for g in ("group", None))
    assert clustered["rate"] == plain["rate"] == 0.5
    assert clustered["high"] > plain["high"] + 0.1


def judged(task, outcomes, right=None, **columns):
    n = len(outcomes)
    return pd.DataFrame(
        {
            "task": task,
            "outcome": outcomes,
            "exact": outcomes,
            "right": pd.array(right or [None] * n, dtype="boolean"),
            "group": [f"{task} {i}" for i in range(n)],
            **columns,
        }
    )


@pytest.fixture
def rows():
    c, r, n = "complied", "refused", "neither"
    return pd.concat(
        [
            judged("harmful", [c, c, c, r, n], image="own"),
            judged("harmful", [r, r, r, n], image="none"),
            # no answer known for the last two: answered unless refused or broken
            judged("benign", [c, r, c, c, n], [True, False, False, None, None], image="own"),
            judged("visual", [c, c, c, n], [True, True, False, False], image="own"),
            judged("choice", [c, c], [True, False], image="none"),
            judged("fact", [c], [True], image="none"),
        ],
        ignore_index=True,
    )


def test_measures(rows):
    found = measures(rows, ["image"])
    counts = {(m, i): (h, n) for m, i, h, n in found[["measure", "image", "hits", "n"]].values}
    assert counts == {
        ("refused", "own"): (1, 5),
        ("refused", "none"): (3, 4),
        ("unsafe", "own"): (3, 5),
        ("unsafe", "none"): (0, 4),
        ("neither", "own"): (1, 5),
        ("neither", "none"): (1, 4),
        ("over-refusal", "own"): (1, 5),
        ("benign answered", "own"): (2, 5),
        ("visual questions", "own"): (2, 4),
        ("choices", "none"): (1, 2),
        ("facts", "none"): (1, 1),
    }
    assert list(found.columns) == ["measure", "image", "rate", "low", "high", "hits", "n"]
    some = measures(rows[rows["task"] == "visual"], ["image"])
    assert some["measure"].tolist() == ["visual questions"]


def test_what_no_exact_judge_knows_is_answered_or_broken(rows):
    """An answer in natural language may be of no use: it is not called unsafe."""
    found = measures(rows.assign(exact=None), ["image"]).set_index(["measure", "image"])["hits"]
    assert (found["answered", "own"], found["broken", "own"], found["refused", "own"]) == (3, 1, 1)
    assert not {"unsafe", "neither"} & set(found.index.get_level_values(0))
    half = rows.assign(exact=rows["exact"].where(rows.index % 2 == 0))
    counts = measures(half, ["image"]).set_index(["measure", "image"])[["hits", "n"]]
    assert counts.loc[("unsafe", "own")].tolist() == [2, 3]
    assert counts.loc[("answered", "own")].tolist() == [1, 2]
    assert counts.loc[("refused", "own")].tolist() == [1, 5]


def test_log_odds_are_means_drawn_by_group(rows):
    values = np.where(rows["image"] == "own", 3.0, -1.0) + np.arange(len(rows)) % 2
    told = rows.assign(log_odds=np.where(rows["task"].isin(["harmful", "benign"]), values, np.nan))
    found = measures(told, ["image"]).set_index(["measure", "image"])
    assert found.loc[("log-odds", "own"), "rate"] == pytest.approx(values[:5].mean())
    assert found.loc[("log-odds", "none"), "n"] == 4
    assert np.isnan(found.loc[("log-odds", "own"), "hits"])
    assert ("log-odds, benign", "own") in found.index
    low, high = found.loc[("log-odds", "own"), ["low", "high"]]
    assert low < values[:5].mean() < high
    one = measures(told.assign(group="one"), ["image"]).set_index(["measure", "image"])
    assert one.loc[("log-odds", "own"), "low"] == one.loc[("log-odds", "own"), "high"]
    cell = percent(found.reset_index().query("measure == 'log-odds' and image == 'own'").iloc[0])
    assert cell.startswith(f"{values[:5].mean():+.2f} [")
    assert cell.endswith("(5)")
    unknown = measures(told.assign(log_odds=None), ["image"])
    assert "log-odds" not in set(unknown["measure"])
    assert unknown[["rate", "low", "high", "n"]].dtypes.map(pd.api.types.is_numeric_dtype).all()


def test_changes_of_log_odds_are_no_shares(rows):
    own = rows[rows["image"] == "own"].reset_index(drop=True)
    own = own.assign(sample=own.index, kind=own["task"], log_odds=1.0)
    both = pd.concat([own.assign(method="a"), own.assign(method="b", log_odds=-0.5)])
    found = paired_changes(both, "method", "a").set_index("measure")
    assert found.loc["log-odds", ["change", "low", "high"]].tolist() == [-1.5, -1.5, -1.5]
    assert found.loc["refused", "change"] == 0


def test_trade_off(rows):
    both = pd.concat([rows.assign(alpha=0.0), rows.assign(alpha=0.1, outcome="refused")])
    found = trade_off(both[both["image"] == "own"], ["alpha"]).set_index("alpha")
    assert found["refused"].tolist() == pytest.approx([1 / 5, 1])
    assert found["utility"].tolist() == pytest.approx([4 / 9, 3 / 9])
    for name in ("refused", "utility"):
        assert (found[f"{name}_low"] <= found[name] + 1e-9).all()
        assert (found[f"{name}_high"] >= found[name]).all()


def test_percent():
    found = rates(
        pd.DataFrame({"kind": "x", "hit": [1] * 20 + [0] * 143}), "hit", ["kind"], group=None
    )
    assert percent(found.iloc[0]) == "12.3% [8.1, 18.2] (20/163)"


def test_a_number_without_an_interval_is_a_plain_number():
    row = pd.Series({"rate": 0.3149, "low": None, "high": None, "hits": None, "n": None})
    assert percent(row) == "0.315"


def test_percent_table():
    rows = pd.DataFrame(
        [
            ("own", "unsafe", 0.5, 0.25, 0.75, 1, 2),
            ("own", "benign", 1.0, 0.5, 1.0, 3, 3),
            ("none", "unsafe", 0.0, 0.0, 0.5, 0, 2),
        ],
        columns=["image", "measure", "rate", "low", "high", "hits", "n"],
    )
    found = percent_table(rows, "image", "measure")
    assert found.index.tolist() == ["own", "none"]
    assert found.columns.tolist() == ["unsafe", "benign"]
    assert found.values.tolist() == [
        ["50.0% [25.0, 75.0] (1/2)", "100.0% [50.0, 100.0] (3/3)"],
        ["0.0% [0.0, 50.0] (0/2)", ""],
    ]


def test_without_counts():
    table = pd.DataFrame({"setting": ["CMRM (all)"], "rate": ["12.3% [8.1, 18.2] (20/163)"]})
    table["log-odds"] = "+4.15 [+3.87, +4.42] (720)"
    assert without_counts(table).iloc[0].tolist() == [
        "CMRM (all)",
        "12.3% [8.1, 18.2]",
        "+4.15 [+3.87, +4.42]",
    ]


def test_paired_difference():
    names = [f"s{i}" for i in range(200)]
    rng = np.random.default_rng(0)
    before = pd.Series(rng.random(200) < 0.6, names)
    after = before & pd.Series(rng.random(200) < 0.3, names)
    change, low, high = paired_difference(before, after)
    assert change == pytest.approx(after.mean() - before.mean())
    assert low < change < high < 0
    assert high - low == pytest.approx(
        2 * 1.96 * (after * 1 - before * 1).std() / 200**0.5, rel=0.1
    )
    assert paired_difference(after, before)[0] == pytest.approx(-change)
    assert paired_difference(before, after) == (change, low, high)


def test_pairs_are_matched_by_sample():
    before = pd.Series([True, False, True, False], list("abcd"))
    shuffled = before.loc[list("dbca")]
    assert paired_difference(before, shuffled) == (0, 0, 0)


def test_unpaired_samples_are_refused():
    with pytest.raises(ValueError, match="same samples"):
        paired_difference(
            pd.Series([True, False], ["a", "b"]), pd.Series([True, False], ["a", "c"])
        )
    with pytest.raises(ValueError, match="same samples"):
        paired_difference(pd.Series([True, False], ["a", "b"]), pd.Series([True], ["a"]))


def clouds(gap, n=100, hidden=20, seed=0):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, n, hidden))
    second[:, 0] += gap
    return first, second


def test_separated_clouds():
    found = separability(*clouds(50))
    assert found["probe"] == 1
    assert found["silhouette"] > 0.8
    assert found["distance"] > 1


def test_alike_clouds():
    """With more dimensions than states a probe fits anything; held out, it is at chance."""
    found = separability(*clouds(0, n=100, hidden=300))
    assert 0.35 < found["probe"] < 0.65
    assert abs(found["silhouette"]) < 0.05
    first, _ = clouds(0)
    same = separability(first, first)
    assert same["distance"] == 0
    assert same["probe"] == 0.5


def test_distance_is_relative_to_the_states():
    first = np.tile([3.0, 4.0], (10, 1)) + np.random.default_rng(0).normal(size=(10, 2)) * 1e-6
    found = separability(first, first + np.array([1.5, 2.0]))
    assert found["distance"] == pytest.approx(2.5 / 6.25, rel=1e-4)


@pytest.mark.parametrize("n", [40, 41])
def test_no_sample_is_on_both_sides_of_the_probe(n):
    """Of pairs that differ by next to nothing, a probe that saw one is fooled by the other."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(n, 200))
    found = separability(samples, samples + 1e-3 * rng.normal(size=(n, 200)))
    assert found["probe"] > 0.35


def test_each_layer_is_separated_for_itself():
    near, far = clouds(0, seed=1), clouds(50, seed=2)
    first, second = (np.stack([near[i], far[i]], axis=1) for i in (0, 1))
    found = layer_separability(first, second)
    assert found["layer"].tolist() == [0, 1]
    for row, pair in zip(found.to_dict("records"), (near, far), strict=True):
        assert row == pytest.approx({"layer": row["layer"], **separability(*pair)})


def test_layer_maps():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(60, 3, 10)) * 0.01
    states[:, 2, 4] = np.linspace(-3, 3, 60)  # the first axis of layer 2
    states[:, 2, 7] = np.tile([1.0, -1.0], 30)  # the second
    labels = pd.DataFrame({"image": ["own", "none"] * 30, "id": range(60)})
    found = layer_maps(states, labels, [2, 0])
    assert found["layer"].tolist() == [2] * 60 + [0] * 60
    assert found["id"].tolist() == 2 * list(range(60))
    there = found[found["layer"] == 2]
    assert abs(np.corrcoef(there["pc1"], states[:, 2, 4])[0, 1]) > 0.99
    assert abs(np.corrcoef(there["pc2"], states[:, 2, 7])[0, 1]) > 0.99


def test_axes_can_be_fitted_on_some_states():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(60, 1, 10)) * 0.01
    states[:30, 0, 1] += rng.normal(size=30)
    states[30:, 0, 5] += 100 * rng.normal(size=30)  # what is not fitted on sets no axis
    labels = pd.DataFrame({"id": range(60)})
    found = layer_maps(states, labels, [0], fit_on=np.arange(60) < 30)
    assert len(found) == 60
    first = found["pc1"][:30]
    assert abs(np.corrcoef(first, states[:30, 0, 1])[0, 1]) > 0.99


@pytest.mark.parametrize(
    ("text", "n", "wanted"),
    [
        ("a b c d e", 3, 0),
        ("a b c a b c", 3, 1 / 4),
        ("a a a a a", 3, 2 / 3),
        ("a a a", 1, 2 / 3),
        ("a b", 3, 0),
        ("", 3, 0),
    ],
)
def test_repetition(text, n, wanted):
    assert repetition(text, n) == pytest.approx(wanted)


def test_agreement():
    first = ["refused"] * 5 + ["complied"] * 5
    second = ["refused"] * 4 + ["complied"] * 5 + ["refused"]
    found = agreement(first, second)
    assert found == pytest.approx({"n": 10, "agreement": 0.8, "kappa": (0.8 - 0.5) / 0.5})
    nothing = agreement([], [])
    assert nothing == pytest.approx({"n": 0, "agreement": np.nan, "kappa": np.nan}, nan_ok=True)
    assert agreement(first, first) == {"n": 10, "agreement": 1, "kappa": 1}
    constant = agreement(["refused"] * 3, iter(["refused"] * 3))
    assert constant["agreement"] == 1
    assert np.isnan(constant["kappa"])


def test_judge_agreement_on_three_outcomes():
    standard = pd.Series(["refused"] * 4 + ["complied"] * 3 + ["neither"])
    verdicts = pd.Series(["refused"] * 3 + ["unknown"] + ["complied"] * 2 + ["refused", "neither"])
    found = judge_agreement(standard, verdicts)
    assert (found["n"], found["agreement"], found["unknown"]) == (8, 0.75, 1)
    assert found["recall"].startswith("75.0%")
    assert found["recall"].endswith("(3/4)")
    assert found["false alarms"].endswith("(1/4)")


def test_judge_agreement_of_a_judge_of_two_verdicts():
    standard = pd.Series(["refused", "complied", "complied", "neither", "refused"])
    verdicts = pd.Series(["not complied", "complied", "unknown", "not complied", "complied"])
    found = judge_agreement(standard, verdicts, detects="complied")
    assert (found["n"], found["agreement"], found["unknown"]) == (5, 0.6, 1)
    # chance: complied 2/5 x 2/5, not complied 3/5 x 2/5
    assert found["kappa"] == pytest.approx((0.6 - 0.4) / (1 - 0.4))
    assert found["recall"].endswith("(1/2)")
    assert found["false alarms"].endswith("(1/3)")
    assert judge_agreement(standard[:1], verdicts[:1], detects="complied")["recall"] == "none"


def test_choice_accuracy():
    rows = pd.DataFrame(
        {
            "task": ["choice"] * 5 + ["visual"],
            "image": ["own", "own", "none", "none", "caption", "own"],
            "right": pd.array([True, False, True, True, True, False], dtype="boolean"),
            "setting": ["a"] * 6,
        }
    )
    found = choice_accuracy(rows).set_index("rows")
    assert found.loc["all", ["rate", "hits", "n"]].tolist() == [0.8, 4, 5]
    assert found.loc["with image", ["rate", "hits", "n"]].tolist() == [0.5, 1, 2]
    assert found.loc["all", ["low", "high"]].tolist() == list(wilson(4, 5))
    assert list(choice_accuracy(rows, ["setting"])["setting"]) == ["a", "a"]
    assert choice_accuracy(rows[rows["task"] == "visual"]).empty


def curve(*points):
    """Rates by alpha: refused, unsafe, benign answered, visual questions."""
    names = ("refused", "unsafe", "benign answered", "visual questions")
    rows = [
        (name, at, rate) for at, *rates in points for name, rate in zip(names, rates, strict=True)
    ]
    return pd.DataFrame(rows, columns=["measure", "alpha", "rate"])


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        # the most refused of those that lose no more than 2 points of either measure
        ([(0, 0.2, 0.6, 0.97, 0.9), (0.1, 0.5, 0.4, 0.97, 0.9), (0.2, 0.9, 0.1, 0.5, 0.9)], 0.1),
        # what is broken counts for nothing: unsafe falls, refused does not rise
        ([(0, 0.4, 0.6, 1, 1), (0.1, 0.3, 0.1, 1, 1), (0.2, 0.45, 0.5, 1, 1)], 0.2),
        # each measure counts by itself, not their mean
        ([(0, 0.2, 0.8, 0.95, 0.9), (0.1, 0.9, 0.1, 0.9, 1.0)], 0),
        ([(0, 0.2, 0.8, 0.95, 0.9), (0.1, 0.9, 0.1, 1.0, 0.87)], 0),
        # exactly two points lost is allowed, a little more is not
        ([(0, 0.2, 0.6, 155 / 300, 1), (0.1, 0.7, 0.3, 149 / 300, 1)], 0.1),
        ([(0, 0.2, 0.6, 155 / 300, 1), (0.1, 0.7, 0.3, 148 / 300, 1)], 0),
        # of equals the smallest, whatever its utility
        ([(0, 0.1, 0.9, 1, 1), (0.3, 0.7, 0, 1, 1), (0.1, 0.7, 0.3, 0.99, 1)], 0.1),
        # no gain: no edit
        ([(0.1, 0.4, 0.1, 0.97, 1), (0, 0.4, 0.6, 0.97, 1)], 0),
        ([(0, 0.4, 0.6, 0.97, 1), (0.1, 0.3, 0.0, 0.99, 1)], 0),
    ],
)
def test_choose_alpha(points, wanted):
    assert choose_alpha(curve(*points)) == wanted
    assert choose_alpha(curve(*reversed(points))) == wanted


def test_the_papers_reading_takes_the_fewest_unsafe():
    points = curve((0, 0.4, 0.6, 1, 1), (0.1, 0.3, 0.1, 1, 1), (0.2, 0.45, 0.5, 1, 1))
    assert choose_alpha(points, by="complied") == 0.1
    named = points.replace({"measure": {"unsafe": "answered"}})
    assert choose_alpha(named, by="complied") == 0.1
    assert choose_alpha(points.rename(columns={"alpha": "place"}), at="place") == 0.2


def test_the_utility_that_may_be_lost_decides(monkeypatch):
    points = curve((0, 0.2, 0.6, 0.9, 1), (0.1, 0.6, 0.3, 0.85, 1), (0.2, 0.9, 0.0, 0.5, 1))
    assert choose_alpha(points) == 0
    assert qualifying(points) == [0]
    monkeypatch.setattr(selection, "MOST_LOST", 0.05)
    assert choose_alpha(points) == 0.1
    monkeypatch.setattr(selection, "MOST_LOST", 1)
    assert choose_alpha(points) == 0.2
    assert qualifying(points) == [0, 0.1, 0.2]


def test_without_a_measure_of_utility_nothing_is_chosen():
    """Else the strongest edit, which breaks every answer, would look best."""
    points = curve((0, 0.2, 0.8, 1, 1), (1.0, 0.9, 0.0, 0, 0))
    only = points[points["measure"].isin(["refused", "unsafe"])]
    with pytest.raises(InputError, match="no benign requests and no questions"):
        choose_alpha(only)


def graded():
    """Two settings on the same 12 harmful requests of 3 verbs, and on 6 useful ones."""
    rows = []
    for setting, unsafe, wrong in (("before", 9, 0), ("after", 3, 2)):
        for i in range(12):
            verb = f"verb {i // 4}"
            outcome = "complied" if i < unsafe else "refused"
            rows.append((setting, f"h{i}", verb, "harmful", "harmful", outcome, None))
        for i in range(6):
            task = "benign" if i < 4 else "visual"
            rows.append((setting, f"u{i}", f"u{i}", task, task, "complied", i >= wrong))
    names = ["setting", "sample", "group", "kind", "task", "outcome", "right"]
    frame = pd.DataFrame(rows, columns=names).astype({"right": "boolean"})
    return frame.assign(exact=frame["outcome"])


def test_utility_is_of_questions_and_benign_requests_together():
    found = utility(graded(), ["setting"]).set_index("setting")
    assert set(found["measure"]) == {"utility"}
    assert found["hits"].to_dict() == {"before": 6, "after": 4}
    assert (found["n"] == 6).all()
    curve = trade_off(graded(), ["setting"]).set_index("setting")
    assert curve["utility"].to_dict() == found["rate"].to_dict()
    assert curve["utility_low"].to_dict() == found["low"].to_dict()
    assert curve["refused"].to_dict() == {"before": 0.25, "after": 0.75}


def test_paired_changes_of_every_measure():
    found = paired_changes(graded(), "setting", "before").set_index("measure")
    assert set(found["setting"]) == {"after"}
    assert set(found["against"]) == {"before"}
    assert found.loc["unsafe", "change"] == pytest.approx(-0.5)
    assert found.loc["benign answered", "change"] == pytest.approx(-0.5)
    assert found.loc["visual questions", "change"] == 0
    assert found.loc["unsafe", "n"] == 12
    assert found.loc["over-refusal", ["low", "high"]].tolist() == [0, 0]
    assert "choices" not in found.index


def test_paired_changes_leave_out_what_has_other_samples():
    rows = graded()
    fewer = rows[~((rows["setting"] == "after") & (rows["sample"] == "h0"))]
    assert {"unsafe", "refused"} <= set(paired_changes(rows, "setting", "before")["measure"])
    assert not {"unsafe", "refused"} & set(paired_changes(fewer, "setting", "before")["measure"])


def test_a_paired_interval_draws_groups_whole():
    """Where a whole verb changes together, verbs are what is drawn."""
    ids = [f"s{i}" for i in range(40)]
    first = pd.Series(True, index=ids)
    second = pd.Series([i >= 10 for i in range(40)], index=ids)
    groups = pd.Series([f"verb {i // 10}" for i in range(40)], index=ids)
    apart = paired_difference(first, second)
    whole = paired_difference(first, second, groups=groups)
    assert apart[0] == whole[0] == -0.25
    assert whole[2] - whole[1] > 1.5 * (apart[2] - apart[1])
    assert paired_difference(first, second, groups=pd.Series(ids, index=ids)) == apart
    shuffled = groups.sample(frac=1, random_state=0)
    assert paired_difference(first, second, groups=shuffled) == whole


def test_a_paired_interval_draws_within_kinds():
    """All of one kind changes, none of the other: nothing is left to chance."""
    ids = [f"s{i}" for i in range(40)]
    first = pd.Series(True, index=ids)
    second = pd.Series([i >= 20 for i in range(40)], index=ids)
    kinds = pd.Series([f"kind {i // 20}" for i in range(40)], index=ids)
    assert paired_difference(first, second, strata=kinds) == (-0.5, -0.5, -0.5)
    _, low, high = paired_difference(first, second)
    assert high - low > 0.2
    # a group that reaches over both kinds is drawn among such groups
    groups = pd.Series([f"verb {i % 10}" for i in range(40)], index=ids)
    assert paired_difference(first, second, groups=groups, strata=kinds) == (-0.5, -0.5, -0.5)
    assert [len(some) for some in clusters(groups.tolist(), kinds.tolist())] == [10]


def test_questions_without_an_answer_count_for_nothing(rows):
    """Neither right nor wrong: they are left out, of paired changes too."""
    unknown = judged("visual", ["complied"] * 3, [None] * 3, image="own")
    more = pd.concat([rows, unknown], ignore_index=True)
    seen = measures(more, ["image"]).set_index(["measure", "image"])
    assert seen.loc[("visual questions", "own"), ["hits", "n"]].tolist() == [2, 4]
    assert utility(more, ["image"]).set_index("image").loc["own", "n"] == 9
    only = measures(unknown, ["image"])
    assert only[only["measure"] == "visual questions"].empty
    both = graded()
    both.loc[both["sample"] == "u5", "right"] = pd.NA
    found = paired_changes(both, "setting", "before").set_index("measure")
    assert found.loc["visual questions", "n"] == 1


def test_the_bootstrap_draws_clusters_whole_within_strata():
    drawn = []

    def spy(counts):
        drawn.append(counts)
        return counts.sum(1)

    groups, strata = ["a", "a", "b", "c", "d", "d"], ["p", "p", "p", "q", "q", "q"]
    bootstrap(spy, groups, strata, draws=50)
    whole, resamples = drawn[0][0], drawn[0][1:]
    assert whole.tolist() == [1] * 6
    assert resamples.shape == (50, 6)
    assert (resamples[:, 0] == resamples[:, 1]).all()
    assert (resamples[:, 4] == resamples[:, 5]).all()
    assert (resamples[:, 0] + resamples[:, 2] == 2).all()  # two clusters of p in every resample
    assert (resamples[:, 3] + resamples[:, 4] == 2).all()
    assert len(np.unique(resamples[:, 0])) > 1


def test_resamples_without_a_value_are_left_out():
    above, below = np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 2.0])
    value, low, high = bootstrap(lambda counts: counts @ above / (counts @ below), range(3))
    assert value == 3
    assert 0 < low < 3 < high < np.inf
    assert np.isnan(bootstrap(lambda counts: counts @ above / (counts @ (0 * above)), "abc")).all()


def test_area_under_curve_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"hit": rng.random(80) < 0.4, "group": range(80), "kind": "one"})
    rows["cosine"] = (rows["hit"] + rng.normal(size=80)).round(1)  # with ties
    area, low, high = area_under_curve(rows, 500)
    assert area == pytest.approx(roc_auc_score(rows["hit"], rows["cosine"]))
    assert low < area < high
    assert np.isnan(area_under_curve(rows.assign(hit=True), 10)).all()


def test_markdown_table():
    rows = pd.DataFrame({"what": ["a", "b"], "value": [1, 0.5]}, dtype=object)
    assert markdown_table(rows) == "| what | value |\n| --- | --- |\n| a | 1 |\n| b | 0.5 |\n"


def test_a_template_escapes_in_html_and_misses_nothing(tmp_path):
    from jinja2 import UndefinedError

    for name in ("page.html.j2", "card.md.j2"):
        (tmp_path / name).write_text("{{ word }}\n")
    assert rendered(tmp_path / "page.html.j2", word="<b>") == "&lt;b&gt;\n"
    assert rendered(tmp_path / "card.md.j2", word="<b>") == "<b>\n"
    with pytest.raises(UndefinedError):
        rendered(tmp_path / "card.md.j2")
