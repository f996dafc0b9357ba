"""Notebooks 10 and 11: stored tables of several models, made ready for figures."""

from collections.abc import Mapping, Sequence

import pandas as pd

from cmrm_utils.errors import InputError
from cmrm_utils.paths import STORED
from cmrm_utils.store import read_csv


def stored(name: str, **where: object) -> pd.DataFrame:
    """A table of ``notebooks/stored``.

    Args:
        name: of the file, without ``.csv``.
        **where: by column, the value of the rows that are wanted, or a list of such values.

    Raises:
        InputError: there is no such table or column, or a value is not in it.
    """
    if not (path := STORED / f"{name}.csv").is_file():
        raise InputError(f"no stored table {name}: `cmrm run` and `cmrm publish` make it")
    rows = read_csv(path)
    for column, value in where.items():
        if column not in rows:
            raise InputError(f"stored table {name} has no column {column}")
        values = value if isinstance(value, list) else [value]
        if missing := [each for each in values if each not in set(rows[column])]:
            raise InputError(f"stored table {name}: no row has {missing[0]!r} in column {column}")
        rows = rows[rows[column].isin(values)]
    return rows


def spread(rows: pd.DataFrame, by: Sequence[str], value: str = "rate") -> pd.DataFrame:
    """The mean of several rows a cell, such as seeds, with the lowest and the highest of them.

    Args:
        rows: one row a seed and cell.
        by: the columns that make a cell of the table.
        value: the column that is averaged.

    Returns:
        ``by`` + ``value``, ``low`` and ``high`` (the lowest and the highest row), and, where
        the rows have them, ``hits`` and ``n`` added up; a mean, which has no hits, stays without.
    """
    cells = rows.groupby(list(by), sort=False, observed=True)
    table = cells[value].agg(["mean", "min", "max"]).set_axis([value, "low", "high"], axis=1)
    for count in [name for name in ("hits", "n") if name in rows]:
        table[count] = cells[count].sum(min_count=1)
    return table.reset_index()


def span(values: "pd.Series[float]", form: str = "{:.1%}") -> str:
    """The lowest and the highest of some values, in words."""
    return f"{form.format(values.min())} to {form.format(values.max())}"


def lifting(first: pd.DataFrame, least: float = 1.0) -> pd.DataFrame:
    """The settings of defences that lift harmful requests on every seed, by first tokens.

    Args:
        first: :func:`spread` of the stored first tokens by ``method, setting, measure``.
        least: nats by which the refusal log-odds of harmful requests rise at least.

    Returns:
        A row a setting: ``harmful`` and ``twins`` (means), and ``spared``, whether the most that
        twins rise is less than half of the least that harmful requests do.
    """
    ends = first.set_index(["measure", "method", "setting"])
    harmful, twins = ends.loc["harmful refused"], ends.loc["benign refused"]
    spared = twins["high"] < harmful["low"] / 2
    rows = {"harmful": harmful["change"], "twins": twins["change"], "spared": spared}
    return pd.DataFrame(rows)[harmful["low"] > least]


def best_settings(first: pd.DataFrame, least_sight: float = -1.0) -> pd.DataFrame:
    """Each defence's setting that lifts harmful requests furthest above twins, by first tokens.

    Args:
        first: as for :func:`lifting`.
        least_sight: nats by which sight may change at least; a defence that keeps it in no setting
            is left out.

    Returns:
        A row a method and its setting: ``harmful``, ``twins`` and ``sight`` (mean changes).
    """
    change = first.pivot(index=["method", "setting"], columns="measure", values="change")
    kept = change[change["sight"] >= least_sight]
    apart = kept["harmful refused"] - kept["benign refused"]
    best = kept.loc[apart.groupby("method").idxmax()]
    names = {"harmful refused": "harmful", "benign refused": "twins", "sight": "sight"}
    return best[[*names]].rename(columns=names).rename_axis(columns=None)


STAGES = {
    "smollm2-llava-projector": "projector alone",
    "smollm2-llava-refusals00": "0% refusals",
    "smollm2-llava-refusals01": "1%",
    "smollm2-llava-refusals05": "5%",
    "smollm2-llava": "20%",
    "smollm2-llava-twins": "20%, twins beside scenes",
}
"""The bundled model's variants by stage of training, and by share of refusals in *instruct*."""


def staged(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of :data:`STAGES`' models, in that order, with ``stage``; seeds have the same one."""
    names = rows["model"].str.replace(r"-seed\d+$", "", regex=True).map(STAGES)
    kept = rows.assign(stage=names)[names.notna()]
    return kept.sort_values("stage", key=lambda of: of.map([*STAGES.values()].index), kind="stable")


def by_dose(frontier: pd.DataFrame) -> pd.DataFrame:
    """Of staged frontiers, :func:`spread` of refusals by ``stage, part, alpha, kind``; ``edit``."""
    named = {"refused": "harmful requests", "twins": "harmless twins"}
    cells = ["stage", "part", "alpha"]
    rows = frontier.rename(columns=named).melt(cells, [*named.values()], "kind", "rate")
    rows = spread(rows, [*cells, "kind"])
    return rows.assign(edit=rows["alpha"].map("alpha {:g}".format).replace("alpha 0", "no edit"))


def at_dose(frontier: pd.DataFrame, alpha: float, parts: Sequence[str]) -> pd.DataFrame:
    """Of frontiers, no edit and some directions at one alpha, told by ``edit``.

    Args:
        frontier: ``stage, kind, part, alpha`` and others.
        alpha: of the edits.
        parts: the directions' names.
    """
    rows = frontier[frontier["alpha"].isin([0.0, alpha]) & frontier["part"].isin(parts)]
    rows = rows.assign(edit=rows["part"].where(rows["alpha"] > 0, "no edit"))
    return rows.drop_duplicates(["stage", "kind", "edit"])


def recipes(frontier: pd.DataFrame, most: float = 0.02) -> pd.DataFrame:
    """The best alpha of v for each model, beside what could predict it.

    Args:
        frontier: stored frontiers, staged; each model has v at alpha 0 and above.
        most: by how much the share of twins that are refused may rise at the best alpha.

    Returns:
        By ``stage`` and ``model``: ``|v| / |h|`` and ``cosine with refusal`` (ratios of means over
        layers), ``best alpha`` (with the largest log-odds of harmful requests), ``gain``
        there in nats, and the share of harmful requests ``refused`` without an edit.
    """
    rows = {}
    for key, these in frontier[frontier["part"] == "v"].groupby(["stage", "model"], sort=False):
        these = these.set_index("alpha").sort_index()
        last, plain = these.iloc[-1], these.loc[0.0]
        spared = these[these["twins"] <= plain["twins"] + most]
        rows[key] = {
            "|v| / |h|": last["dose"] / these.index[-1],
            "cosine with refusal": -last["towards"] / last["dose"],
            "best alpha": spared["log-odds"].idxmax(),
            "gain": spared["log-odds"].max() - plain["log-odds"],
            "refused": plain["refused"],
        }
    return pd.DataFrame(rows).T.rename_axis(["stage", "model"])


QUESTIONS: dict[str, tuple[list[str], str]] = {
    "anchors": (["set", "measure", "alpha"], "change"),
    "entanglement": (["edit", "measure"], "change"),
    "gates": (["gate", "state"], "rate"),
    "pictures": (["picture", "method"], "rate"),
}
"""Of notebook 09's stored tables: label, panel and, if any, colour of a figure, and its value."""


def answers(asked: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """What each question's figure shows, in a sentence.

    Args:
        asked: :func:`spread` of each table of :data:`QUESTIONS`.
    """
    anchors = asked["anchors"].set_index(["set", "measure", "alpha"])
    v = anchors.loc[("all 144", "harmful refused", 0.1)]
    edits = asked["entanglement"].set_index(["measure", "edit"])["change"]
    areas = asked["gates"].groupby("gate")["rate"].min()
    pictures = asked["pictures"].query("method == 'no edit'")
    return {
        "anchors": "At alpha 0.1 v changes harmful log-odds by "
        f"{v['low']:+.2f} to {v['high']:+.2f}",
        "entanglement": f"CMRM at 0.2 changes sight by {edits['sight', 'CMRM 0.2']:+.2f}, "
        f"the refusal direction twins by {edits['benign refused', 'refusal direction 0.2']:+.2f}",
        "gates": f"Harmful or a twin? A probe's area is at least {areas['probe']:.2f}, "
        f"HiddenDetect's {areas['HiddenDetect']:.2f}",
        "pictures": "Refusals stay: mean log-odds "
        f"{span(pictures['rate'], '{:+.2f}')} over pictures",
    }


def layered(effects: pd.DataFrame) -> pd.DataFrame:
    """Of notebook 08's effects those of layers, with ``layers`` (which of them) and ``layer``.

    Args:
        effects: ``section, variant`` and others.
    """
    rows = effects[effects["section"] == "layers"]
    split = rows["variant"].str.extract(r"^(?P<layers>.*) (?P<layer>\d+)$")
    return rows.assign(layers=split["layers"], layer=split["layer"].astype(int))


_PLAINLY: Mapping[str, str] = {
    r"^heads (first|random) k (\d+) draw \d+$": r"heads: \1 \2",
    r"^(first) k (\d+)$": r"components: \1 \2",
    r"^(without) them (\d+)$": r"components: \1 \2",
    r"^(without) them, at v's norm (\d+)$": r"components: \1 \2, v's norm",
    r"^(attention|MLPs) all$": r"undone: \1",
    r"^(image|text|last prompt|prompt)$": r"tokens: \1",
}


def unlayered(effects: pd.DataFrame) -> pd.DataFrame:
    """Of notebook 08's effects all but those of layers and single places, in plain words.

    Args:
        effects: ``section, variant`` and others; a variant that has no plain name is left out.
    """
    rows = effects[effects["section"] != "layers"]
    plain = rows["variant"].replace(dict(_PLAINLY), regex=True)
    return rows.assign(variant=plain)[plain.str.contains(": ", regex=False)]


def rises(parts: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """How far the share refused rises under each part of v on an invented world's model.

    Args:
        parts: ``measure`` (*unsafe* and *neither* among them), ``part, alpha, model, rate``.
        alpha: of the edits.

    Returns:
        A row a model, a column a part: points from 0 to 100.
    """
    rates = parts[parts["measure"].isin(["unsafe", "neither"])]
    lost = rates.pivot_table(
        index="model", columns=["part", "alpha"], values="rate", aggfunc="sum", sort=False
    )
    start, end = (lost.xs(at, axis=1, level="alpha") for at in (0.0, alpha))
    return 100 * (start - end)


def anchor_kinds(sets: pd.DataFrame) -> pd.Series:
    """What each set of anchors is: draws of one number are one kind, and so are all families.

    Args:
        sets: ``varied, set, size``.
    """
    numbers = sets["size"].astype(str) + " harmful"
    kinds = sets["set"].mask(sets["varied"] == "number", numbers)
    return kinds.mask(sets["varied"] == "family", "one family")


def short(names: pd.Series) -> pd.Series:
    """Models of the invented world without what all their names have in common."""
    # `caption` alone is the name of an image condition, and tables would write that out.
    return names.str.removeprefix("organism-").replace("caption", "captions")
