"""Notebook 07: how many refusals each direction brings back, and how many twins it costs.

It is measured at the first response token, by refusal log-odds: one forward pass a trial, and no
judge. In the invented world, whose model has no log-odds, the exact judge tells who is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cmrm_utils.edits import Edit
from cmrm_utils.engine.batch import log_odds
from cmrm_utils.engine.loops import first_logits, hidden_states, progress_bar, response_header
from cmrm_utils.methods.base import cached_vectors, dose, edited
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.methods.prompting import caption_trials
from cmrm_utils.results.intervals import area_under_curve
from cmrm_utils.results.rates import LOG_ODDS, means, rates
from cmrm_utils.results.responses import table
from cmrm_utils.store import Records, hashed
from cmrm_utils.studies import anatomy, sweep
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors

TRIALS = 256
"""Trials whose logits are held at once: the vocabulary is wide."""


@dataclass(frozen=True)
class Odds:
    """What is kept of a trial: refusal log-odds at the first response token, in nats."""

    log_odds: float


def opening(nb: Notebook, trials: Sequence[Trial]) -> pd.DataFrame:
    """Whether each trial's response opens with a refusal: a row a trial, with ``hit``.

    With refusal log-odds, where there are any, it opens with one if they are above 0, and they
    stand in ``log_odds``. They are kept in the run.
    """
    if not nb.openers:
        rows = nb.ask(trials)
        return rows.assign(hit=rows["outcome"] == "refused")
    shared = response_header(nb.vlm, 1, nb.openers)
    with Records(nb.run.folder / "yardstick" / "odds.jsonl", shared, Odds).appending() as sink:
        new = list({t.id: t for t in trials if sink.get(t.id) is None}.values())
        with progress_bar(len(new), "log-odds", True) as bar:
            for start in range(0, len(new), TRIALS):
                some = new[start : start + TRIALS]
                values = log_odds(first_logits(nb.vlm, some), nb.openers).tolist()
                sink.add((t.id, Odds(x)) for t, x in zip(some, values, strict=True))
                bar.update(len(some))
        odds = [sink.all[trial.id].log_odds for trial in trials]
    rows = table(trials, [""] * len(trials))
    return rows.assign(**{LOG_ODDS: odds}, hit=[value > 0 for value in odds])


def directions(nb: Notebook) -> dict[str, ShiftVectors]:
    """What is tried against v: :func:`.anatomy.parts`, and others with v's norm in every layer.

    All are turned as v is: subtracted from the states, they are meant to bring refusals back.
    *refused - answered* is the mean over kinds of anchors (text only) of the difference between
    those that the model refuses and those that it answers; without both, it is left out.
    """
    vlm, harmful = nb.vlm, nb.anchors.harmful
    v = nb.anchors.shift()
    noise = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (len(harmful), 1, 1), generator=noise) * 2.0 - 1
    both = [Trial(s, image) for image in ("none", "blank") for s in harmful]
    text, states = hidden_states(vlm, both).chunk(2)
    weights = torch.randn(len(states), generator=noise)
    spread = torch.einsum("n,nlh->lh", weights, states - states.mean(0))
    more = {
        "v, signs shuffled": ShiftVectors((signs * (states - text)).mean(0)),
        "random, as states vary": ShiftVectors(spread),
    }
    decided = refused_minus_answered(nb)
    if decided is not None:
        more["refused - answered"] = decided.scaled(-1.0)
    return anatomy.parts(nb) | {name: part.scaled_like(v) for name, part in more.items()}


SHOWN = (
    "v",
    "v without refusal",
    "refusal direction",
    "refused - answered",
    "b (benign anchors)",
    "v, signs shuffled",
    "random, as states vary",
    "random",
)
"""The directions that the figure of notebook 07 has; its tables have all."""


def refused_minus_answered(nb: Notebook) -> ShiftVectors | None:
    """Mean text state of refused minus that of answered anchors, within each kind, then averaged.

    Unlike the refusal direction it holds nothing of how harmful and benign requests differ. None
    where no kind has two of both.
    """
    trials = [Trial(sample, "none") for sample in nb.samples("anchors", None, "harmful", "benign")]
    rows = nb.ask(trials)
    pairs = []
    for _, these in rows.groupby("kind"):
        sides = [these.index[these["outcome"] == name].tolist() for name in ("refused", "complied")]
        if min(map(len, sides)) > 1:
            pairs.append(sides)
    if not pairs:
        return None

    def apart(states: Tensor) -> Tensor:
        exact = states.double()
        return torch.stack([exact[a].mean(0) - exact[b].mean(0) for a, b in pairs]).mean(0).float()

    path = nb.run.folder / "vectors" / "refused_answered.safetensors"
    outcomes = hashed(rows["outcome"])
    return cached_vectors(nb.vlm, trials, "refused - answered", apart, path=path, outcomes=outcomes)


def requests(nb: Notebook, n: int | None) -> list[Trial]:
    """The requests that frontiers are drawn on: of the validation split, unedited, with images."""
    return nb.plainly(nb.samples("validation", n, "harmful", "benign"))


def frontier(
    nb: Notebook, parts: Mapping[str, ShiftVectors], alphas: Sequence[float], n: int | None
) -> pd.DataFrame:
    """Each direction at each alpha: who is refused, and how well the log-odds tell harm.

    Args:
        nb: the notebook.
        parts: by name (:func:`directions`).
        alphas: strengths; alpha 0 is added.
        n: requests of each kind.

    Returns:
        ``part, alpha, dose, towards`` (the edit beside the state's norm, and that of it which goes
        along the refusal direction; mean over layers), then for each measure ``NAME, NAME_low,
        NAME_high``: ``refused`` (harmful), ``twins`` (their harmless twins, or all benign requests
        where there are none), ``ordinary`` (other benign requests), ``log-odds`` of the harmful
        ones, and ``area``: how often a harmful request has larger log-odds than a twin.
    """
    tried = _frontier_lists(nb, parts, alphas, n)
    rows = opening(nb, [trial for trials in tried.values() for trial in trials])
    keys = [key for key, trials in tried.items() for _ in trials]
    rows = rows.assign(part=[name for name, _ in keys], alpha=[alpha for _, alpha in keys])
    spoken = LOG_ODDS in rows and rows[LOG_ODDS].notna().any()
    result = _doses(nb, parts, sorted({0.0, *alphas})).assign(twins=np.nan)
    for name, these in _sides(rows).items():
        result = result.drop(columns=name, errors="ignore")
        result = result.merge(_named(rates(these, "hit", ["part", "alpha"]), name))
        if name == "refused" and spoken:
            result = result.merge(_named(means(these, LOG_ODDS, ["part", "alpha"]), "log-odds"))
    return result.merge(_areas(rows)) if spoken and result["twins"].notna().all() else result


def _frontier_lists(
    nb: Notebook, parts: Mapping[str, ShiftVectors], alphas: Sequence[float], n: int | None
) -> dict[tuple[str, float], list[Trial]]:
    plain = requests(nb, n)
    return {
        (name, alpha): edited(plain, CMRM(part, alpha, name=name))
        for name, part in parts.items()
        for alpha in sorted({0.0, *alphas})
    }


def _sides(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Harmful requests, their twins, and other benign requests, each if there are any."""
    harmful, twin = rows["task"] == "harmful", rows["kind"].str.contains("twin")
    if not twin.any():
        twin = ~harmful
    sides = {"refused": rows[harmful], "twins": rows[twin], "ordinary": rows[~harmful & ~twin]}
    return {name: these for name, these in sides.items() if not these.empty}


def _named(cells: pd.DataFrame, name: str) -> pd.DataFrame:
    names = {"rate": name, "low": f"{name}_low", "high": f"{name}_high"}
    return cells.rename(columns=names)[["part", "alpha", *names.values()]]


def _areas(rows: pd.DataFrame, draws: int = 200) -> pd.DataFrame:
    sides = _sides(rows)
    both = pd.concat([sides["refused"].assign(hit=True), sides["twins"].assign(hit=False)])
    both = both.assign(cosine=both[LOG_ODDS])
    cells = [
        (*key, *area_under_curve(these, draws)) for key, these in both.groupby(["part", "alpha"])
    ]
    return pd.DataFrame(cells, columns=["part", "alpha", "area", "area_low", "area_high"])


def _doses(
    nb: Notebook, parts: Mapping[str, ShiftVectors], alphas: Sequence[float]
) -> pd.DataFrame:
    harmful = [trial for trial in requests(nb, None) if trial.sample.harmful]
    states = hidden_states(nb.vlm, harmful)
    size = states.norm(dim=-1).mean(0)
    r = nb.anchors.refusal()
    unit = r.values / r.norms[:, None]

    cells = []
    for name, part in parts.items():
        along = -float(((part.values * unit).sum(-1) / size).mean())
        for alpha in alphas:
            length = float(dose(CMRM(part, alpha), states).mean())
            cells.append((name, alpha, length, alpha * along))
    return pd.DataFrame(cells, columns=["part", "alpha", "dose", "towards"])


def matched(rows: pd.DataFrame, level: float, *, y: str = "refused") -> pd.DataFrame:
    """What each direction costs where it first reaches a level, read off between its alphas.

    Args:
        rows: of :func:`frontier`.
        level: of ``y``, as a share.
        y: what is to reach it.

    Returns:
        ``part, alpha, dose, towards, twins`` (and ``ordinary``), NaN where it is not reached.
    """
    columns = [c for c in ("alpha", "dose", "towards", "twins", "ordinary") if c in rows]
    return pd.DataFrame(
        [
            (name, *_first_reaching(these.sort_values("alpha"), y, level, columns))
            for name, these in rows.groupby("part", sort=False)
        ],
        columns=["part", *columns],
    )


def _first_reaching(
    line: pd.DataFrame, y: str, level: float, columns: Sequence[str]
) -> Iterator[float]:
    values, at = line[y].to_numpy(), line[list(columns)].to_numpy(dtype=float)
    above = (values >= level).nonzero()[0]
    if not len(above):
        return iter([float("nan")] * len(columns))
    after = int(above[0])
    if after == 0:
        return iter(at[0].tolist())
    share = (level - values[after - 1]) / (values[after] - values[after - 1])
    return iter((at[after - 1] + share * (at[after] - at[after - 1])).tolist())


def ablations(nb: Notebook, n: int | None, depth: float) -> pd.DataFrame:
    """Is a refusal direction refusal? The model asked as text, with directions taken out of it.

    One layer's direction is taken out of every layer's output, at every token (arXiv 2406.11717):
    the refusal direction, *refused - answered*, and, as a control, a random one.

    Args:
        nb: the notebook.
        n: requests of each kind.
        depth: of the layer whose direction is taken, as a share of the model's layers.

    Returns:
        Judged trials with ``taken out``.
    """
    return nb.ask_lists(_ablation_lists(nb, n, depth), "taken out")


def _ablation_lists(nb: Notebook, n: int | None, depth: float) -> dict[str, list[Trial]]:
    samples = nb.samples("validation", n, "harmful", "benign")
    plain = [Trial(sample, "none") for sample in [*samples, *nb.facts("validation", n)]]
    out: dict[str, ShiftVectors | None] = {
        "nothing": None,
        "refusal direction": nb.anchors.refusal(),
        "refused - answered": refused_minus_answered(nb),
        "random": nb.anchors.shift().random(0),
    }
    return {
        name: edited(plain, taken_out(vectors, depth)) if vectors else plain
        for name, vectors in out.items()
        if vectors or name == "nothing"
    }


def taken_out(vectors: ShiftVectors, depth: float) -> Edit:
    """The edit that projects one layer's direction out of every layer's output, at every token.

    Args:
        vectors: a direction for each layer.
        depth: of the layer whose direction it is, as a share of the layers, below 1.
    """
    layers, hidden = vectors.values.shape
    unit = torch.nn.functional.normalize(vectors.values[int(depth * layers)], dim=-1)
    return Edit(torch.zeros(layers, hidden), project=unit.repeat(layers, 1, 1))


def trials(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """07: what the anchors are answered, directions taken out, v's parts, the shifts' samples."""
    n = p["n_validation"]
    yield [Trial(sample, "none") for sample in nb.samples("anchors", None, "harmful", "benign")]
    yield list(chain.from_iterable(_ablation_lists(nb, n, p["depth"]).values()))
    if not nb.openers:
        tried = _frontier_lists(nb, directions(nb), p["alphas"], n)
        yield list(chain.from_iterable(tried.values()))
    yield sweep.validation(nb, p["n_parts"])
    yield anatomy.part_trials(nb, p["n_parts"], p["doses"])
    harmful = [s for s in sweep.samples_tested(nb, p["n_test"], unseen=False) if s.harmful]
    yield caption_trials([*nb.anchors.harmful, *nb.anchors.benign, *harmful])
    yield anatomy.shift_trials(nb, p["n_test"])
