"""What a figure says in one sentence, computed from the figure's own table."""

from collections.abc import Sequence

import pandas as pd

from cmrm_utils.conditions import CONDITION_NAMES


def conditions(rates: pd.DataFrame, *, by: str, text: str, shown: str) -> str:
    """How many harmful requests are refused as text, and beside an image.

    Args:
        rates: of :func:`cmrm_utils.results.rates.measures` by ``by``.
        by: the column that names the conditions.
        text: the condition without an image.
        shown: the condition with one; where it is the same, or missing, only ``text`` is told.
    """
    refused = rates[rates["measure"] == "refused"].set_index(by)["rate"]
    said = f"As text {refused[text]:.1%} of harmful requests are refused"
    if shown == text or shown not in refused:
        return said
    return f"{said}, beside the {CONDITION_NAMES.get(shown, shown)} {refused[shown]:.1%}"


def variance(maps: pd.DataFrame) -> str:
    """How much of the variance the maps' two axes show.

    Args:
        maps: of :func:`cmrm_utils.studies.gap.layer_maps`.
    """
    shares = maps.groupby("layer")[["share1", "share2"]].first().sum(axis=1)
    few, many = f"{shares.min():.0%}", f"{shares.max():.0%}"
    return f"Two axes show {few if few == many else f'{few} to {many}'} of the variance"


def distance(gaps: pd.DataFrame, image: str = "own") -> str:
    """How far an image moves the mean state at most.

    Args:
        gaps: ``layer, image, distance``.
        image: the condition that is told of.
    """
    most = gaps[gaps["image"] == image].nlargest(1, "distance").iloc[0]
    return (
        f"The {CONDITION_NAMES[image]} moves the mean state of harmful requests by at most "
        f"{most['distance']:.0%} of its norm (layer {most['layer']})"
    )


def apart(harm: pd.DataFrame) -> str:
    """How far apart harmful and benign requests are in the last layer.

    Args:
        harm: ``layer, image, silhouette``.
    """
    last = harm[harm["layer"] == harm["layer"].max()].set_index("image")["silhouette"]
    return (
        f"Harmful and benign requests in the last layer: silhouette {last['none']:.2f} as text, "
        f"{last['own']:.2f} beside the own image"
    )


def ends(rows: pd.DataFrame, value: str, what: str, form: str = "{:.2f}") -> str:
    """A value in the first layer and in the last.

    Args:
        rows: ``layer`` and ``value``, a row a layer.
        value: the column.
        what: its name, with which the sentence begins.
        form: how it is written.
    """
    values = rows.set_index("layer")[value].sort_index()
    first, last = (form.format(values.iloc[at]) for at in (0, -1))
    return f"{what}: {first} in the first layer, {last} in the last"


def anchors(curve: pd.DataFrame, count: int, enough: int = 16) -> str:
    """How near a few anchors come to all.

    Args:
        curve: of :func:`cmrm_utils.studies.shift.anchor_curve`.
        count: of all anchors.
        enough: the number that is told of, or the next smaller one there is.
    """
    row = curve[curve["anchors"] <= enough].iloc[-1]
    return (
        f"The vector of {row['anchors']:.0f} anchors has cosine {row['cosine']:.2f} with that of "
        f"all {count}"
    )


def towards(cosines: pd.Series) -> str:
    """How the shift lies to the refusal direction, over the layers.

    Args:
        cosines: of v with the refusal direction, a value a layer.
    """
    return (
        f"Cosine of v with the refusal direction: {cosines.mean():+.2f} on average, "
        f"{cosines.min():+.2f} to {cosines.max():+.2f} over the layers"
    )


def rate_at(rows: pd.DataFrame, measure: str, method: str, alpha: float) -> float:
    """One rate of a table by ``measure, method, alpha``; NaN where there is none."""
    at = (rows["measure"] == measure) & (rows["method"] == method) & (rows["alpha"] == alpha)
    return float(rows.loc[at, "rate"].mean())


def strongest(curves: pd.DataFrame, method: str, measures: tuple[str, ...]) -> str:
    """What becomes of some measures from no edit to a method's largest alpha.

    Args:
        curves: ``measure, method, alpha, rate``.
        method: the method that is told of; where there is none, the rates without an edit.
        measures: those told of, as far as they were measured.
    """
    there = [name for name in measures if name in set(curves["measure"])]
    if method not in set(curves["method"]):
        only = curves["method"].iloc[0]
        rates = (f"{name} {rate_at(curves, name, only, 0.0):.1%}" for name in there)
        return f"Without an edit: {', '.join(rates)}"
    alpha = curves.loc[curves["method"] == method, "alpha"].max()
    changes = (
        f"{name} {rate_at(curves, name, method, 0.0):.1%} to "
        f"{rate_at(curves, name, method, alpha):.1%}"
        for name in there
    )
    return f"{method}, from no edit to alpha {alpha:g}: {', '.join(changes)}"


def frontier(rows: pd.DataFrame) -> str:
    """Which setting refuses most, and what it leaves of utility.

    Args:
        rows: of :func:`cmrm_utils.results.rates.trade_off` by ``method, alpha``.
    """
    most = rows.sort_values(["refused", "utility"], ascending=False).iloc[0]
    start = rows[rows["alpha"] == 0.0].iloc[0]
    return (
        f"Most refused: {most['method']} at alpha {most['alpha']:g}, {most['refused']:.1%} at "
        f"{most['utility']:.1%} of utility; without an edit {start['refused']:.1%} at "
        f"{start['utility']:.1%}"
    )


def changed(changes: pd.DataFrame, by: str, names: tuple[str, ...], measure: str) -> str:
    """What some settings change of a measure, in points.

    Args:
        changes: of :func:`cmrm_utils.results.rates.paired_changes`.
        by: the column that names the settings.
        names: the settings that are told of.
        measure: the measure.
    """
    rows = changes[changes["measure"] == measure].set_index(by)["change"]
    return told(f"Change of {measure} in points", 100 * rows, names, "{:+.1f}")


def directions(cosines: pd.DataFrame) -> str:
    """The mean cosine of each pair of vectors over the layers.

    Args:
        cosines: ``pair, layer, cosine``.
    """
    means = cosines.groupby("pair", sort=False)["cosine"].mean()
    return told("Cosines, mean over the layers", means, list(means.index))


def twins(rows: pd.DataFrame, names: tuple[str, ...] = ("v", "refusal direction")) -> str:
    """What some directions have refused at the largest alpha, of harmful requests and of twins.

    Args:
        rows: of :func:`cmrm_utils.studies.frontier.frontier`.
        names: the directions that are told of.
    """
    most = rows["alpha"].max()
    end = rows[rows["alpha"] == most].set_index("part")
    told = (
        f"{name} refuses {end.loc[name, 'refused']:.0%} of harmful requests and "
        f"{end.loc[name, 'twins']:.0%} of twins"
        for name in names
    )
    return f"At alpha {most:g} {', the '.join(told)}"


def told_apart(areas: pd.DataFrame) -> str:
    """How many areas under the curve are surely not chance.

    Args:
        areas: ``low, high``, a row an area.
    """
    sure = ((areas["low"] > 0.5) | (areas["high"] < 0.5)).sum()
    return f"The 95% interval leaves out chance in {sure} of {len(areas)} cases"


def told(what: str, values: pd.Series, names: Sequence[str], form: str = "{:+.2f}") -> str:
    """Some of a table's values, by name.

    Args:
        what: what the values are.
        values: the values, by name.
        names: the names that are told of, as far as they are there.
        form: how they are written.
    """
    said = (
        f"{CONDITION_NAMES.get(name, name)} {form.format(values[name])}"
        for name in names
        if name in values
    )
    return f"{what}: {', '.join(said)}"


def selective(first: pd.DataFrame, names: Sequence[str]) -> str:
    """How many settings lift refusals by over a nat, and which of them spare twins and sight.

    Twins are spared if theirs rise by less than half as much, sight if it falls by less than a nat.

    Args:
        first: ``method, setting, measure, change``.
        names: the measures of harmful requests, of twins and of sight.
    """
    wide = first.pivot(index=["method", "setting"], columns="measure", values="change")
    said = f"{len(wide)} settings"
    if not set(names) <= set(wide):
        return said
    harmful, twins, sight = (wide[name] for name in names)
    lifts = harmful > 1
    spare = lifts & (twins < harmful / 2) & (sight > -1)
    told = ", ".join(f"{method} ({setting})" for method, setting in wide.index[spare])
    return (
        f"{lifts.sum()} of {said} lift the log-odds of harmful requests by over a nat; "
        f"twins and sight are spared by {told or 'none'}"
    )
