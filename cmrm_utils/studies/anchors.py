"""Notebook 09: sets of anchors."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from cmrm_utils.edits import Edit
from cmrm_utils.errors import InputError
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.organism.samples import world_request
from cmrm_utils.results.intervals import paired_difference, rank_correlation
from cmrm_utils.results.rates import measures, trade_off
from cmrm_utils.sample import Sample
from cmrm_utils.studies.abilities import requests
from cmrm_utils.studies.notebook import ANCHORS, Notebook
from cmrm_utils.studies.selection import choose_alpha
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors, refusal_direction, shifts

ALL = "all families"


MEANINGLESS = ("black", "white", "noise", "blur", "mean")
"""Images that sets of anchors are taken with beside the blank one; ``mean``: of their own."""


@dataclass(frozen=True, eq=False)
class AnchorSet:
    """Anchors, and the shift taken on them.

    Attributes:
        varied: what is varied among the sets that it belongs to.
        name: its own.
        size: how many anchors.
        vectors: the shift.
    """

    varied: str
    name: str
    size: int
    vectors: ShiftVectors


def family(sample: Sample) -> str | None:
    """What a request is a case of: in the organism's world its family of verbs, else its group."""
    request = world_request(sample)
    return request.family if request else sample.group


def families(samples: Iterable[Sample], least: int = 5) -> dict[str, list[Sample]]:
    """Harmful samples by family, of the families that have at least so many."""
    by_family: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.harmful and (name := family(sample)) is not None:
            by_family[name].append(sample)
    return {name: these for name, these in by_family.items() if len(these) >= least}


def anchor_sets(nb: Notebook, *, sizes: Sequence[int], draws: int) -> list[AnchorSet]:
    """The reference (notebook 03's vector), and sets that differ from it in one thing each.

    Args:
        nb: whose model and anchors.
        sizes: numbers of harmful anchors, drawn at random; those above what there is: all.
        draws: of each size.
    """
    harmful, usual = nb.samples("anchors", None, "harmful"), nb.anchors.harmful
    sets = [AnchorSet("reference", "harmful, blank", len(usual), nb.anchors.shift())]

    def add(varied: str, name: str, differences: Tensor) -> None:
        mean = ShiftVectors(differences.double().mean(0).float())
        sets.append(AnchorSet(varied, name, len(differences), mean))

    every = shifts(nb.vlm, harmful)
    generator = torch.Generator().manual_seed(0)
    for size in sorted({min(size, len(every)) for size in sizes}):
        for draw in range(1 if size == len(every) else draws):
            chosen = torch.randperm(len(every), generator=generator)[:size]
            add("number", f"{size}, draw {draw + 1}", every[chosen])
    good, bad = shifts(nb.vlm, nb.anchors.benign), shifts(nb.vlm, usual)
    add("requests", "benign", good)
    add("requests", "half and half", torch.cat([bad[::2], good[::2]]))
    if questions := nb.questions("anchors", ANCHORS):
        add("requests", "questions", shifts(nb.vlm, questions))
    places = {sample.id: i for i, sample in enumerate(harmful)}
    for name, these in families(harmful).items():
        add("family", name, every[[places[sample.id] for sample in these]])
    seen = [sample for sample in usual if sample.image is not None]
    for image in MEANINGLESS:
        if image == "mean" and seen:
            picture = mean_image(seen)
            samples = [replace(sample, image=picture) for sample in usual]
            add("image", "mean image", shifts(nb.vlm, samples, meaningless="own"))
        elif image not in ("blur", "mean") or len(seen) == len(usual):
            add("image", image, shifts(nb.vlm, usual, meaningless=image))
    return sets


def anchor_trials(
    nb: Notebook, sets: Sequence[AnchorSet], alpha: float, doses: Sequence[float], n: int | None
) -> list[Trial]:
    """Validation samples without an edit, and under each set's vector: see :func:`anchor_effects`.

    The edits are named by the set, and their alpha is the dose; at ``alpha`` as it is, by the set
    and ``as taken``.
    """
    samples = [*requests(nb, "validation", n), *nb.questions("validation", n)]
    edits: list[Edit | None] = [None]
    for each in sets:
        name = f"{each.varied}: {each.name}"
        edits.append(CMRM(each.vectors, alpha, name=f"{name}, as taken"))
        as_long = each.vectors.scaled_like(sets[0].vectors)
        strengths = sorted({alpha, *doses} - {0.0})
        edits += [CMRM(as_long, strength, name=name) for strength in strengths]
    return nb.plainly(samples, edits)


AT = ("the reference's alpha", "the reference's dose", "its own dose")
"""Strengths that a set's vector is tried at: see :func:`anchor_effects`."""


def anchor_effects(
    nb: Notebook, sets: Sequence[AnchorSet], alpha: float, doses: Sequence[float], n: int | None
) -> pd.DataFrame:
    """What each set's vector does on the validation split, beside what might predict it.

    The sets' vectors differ in length, so each is tried in three ways. At the alpha of the
    reference's vector v it shows what a user would get. At the length of alpha times v in every
    layer it shows what its direction does. At v's lengths and the alpha that the rule chooses for
    it, its dose, it shows the best that it can do.

    Args:
        nb: whose model.
        sets: the reference first.
        alpha: chosen for the reference.
        doses: to choose from; ``alpha`` is added.
        n: validation samples of each kind.

    Returns:
        ``varied, set, size, at, dose, refused, utility`` with intervals, ``rise`` (of the share
        refused), and :data:`PREDICTORS`, means over layers.
    """
    rows = nb.ask(anchor_trials(nb, sets, alpha, doses, n))
    by = ["method", "alpha"]
    curve, measured = trade_off(rows, by), measures(rows, by)
    start = curve[curve["method"] == "none"].assign(alpha=0.0)
    v, refusal = sets[0].vectors, refusal_direction(nb.vlm, nb.anchors.harmful, nb.anchors.benign)
    records: list[dict[str, Any]] = []
    for each in sets:
        name = f"{each.varied}: {each.name}"
        own = pd.concat([start, curve[curve["method"] == name]])
        best = choose_alpha(measured[measured["method"].isin(["none", name])])
        taken = curve[curve["method"] == f"{name}, as taken"]
        about = {
            "varied": each.varied,
            "set": each.name,
            "size": each.size,
            "cosine against refusal": -float(each.vectors.cosine(refusal).mean()),
            "cosine with v": float(each.vectors.cosine(v).mean()),
            "norm": float((each.vectors.norms / v.norms).mean()),
        }
        frames = (taken if alpha else start, own[own["alpha"] == alpha], own[own["alpha"] == best])
        records += [{**about, "at": at, **row.iloc[0]} for at, row in zip(AT, frames, strict=True)]
    effects = pd.DataFrame(records).drop(columns="method").rename(columns={"alpha": "dose"})
    return effects.assign(rise=effects["refused"] - start["refused"].iloc[0])


PREDICTORS = ("cosine against refusal", "cosine with v", "norm")


def predictors(effects: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of each of :data:`PREDICTORS` with the rise of the share refused, over sets.

    Args:
        effects: of :func:`anchor_effects`.

    Returns:
        ``at, predictor, correlation, low, high, sets``; intervals by resampling the sets.
    """
    records = [
        (at, name, *rank_correlation(rows[name], rows["rise"]), len(rows))
        for at, rows in effects.groupby("at", sort=False)
        for name in PREDICTORS
    ]
    columns = ["at", "predictor", "correlation", "low", "high", "sets"]
    return pd.DataFrame(records, columns=columns)


def family_trials(
    nb: Notebook, sets: Sequence[AnchorSet], alpha: float, n: int | None
) -> list[Trial]:
    """Validation requests of each family under each family's vector at v's dose, and under none."""
    trained = {each.name: each for each in sets if each.varied == "family"}
    every = families(nb.samples("validation", None, "harmful"))
    samples = [s for name, these in every.items() if name in trained for s in these[:n]]
    edits = [
        CMRM(each.vectors.scaled_like(sets[0].vectors), alpha, name=name)
        for name, each in {ALL: sets[0], **trained}.items()
    ]
    return nb.plainly(samples, [None, *edits]) if len(trained) > 1 else []


def family_rows(
    nb: Notebook, sets: Sequence[AnchorSet], alpha: float, n: int | None
) -> pd.DataFrame | None:
    """Requests judged, by the family that is asked for and the family of the anchors.

    Returns:
        One row a trial, with ``anchors, asked, refused``; None, and a line that says so, where the
        data does not have two families.
    """
    trials = family_trials(nb, sets, alpha, n)
    if not trials:
        print("the data has no two families of harmful requests in anchors and validation split")
        return None
    rows = nb.ask(trials)
    rows["asked"] = [family(trial.sample) for trial in trials]
    rows["anchors"] = rows["method"].replace("none", "no edit")
    return rows.assign(refused=rows["outcome"] == "refused")


def own_family(rows: pd.DataFrame) -> tuple[float, float, float] | None:
    """How much less is refused under other families' anchors than under the request's own.

    Only requests count that are not refused without an edit. For each, the other families' mean is
    compared with its own family's rate. The interval comes from a bootstrap over verbs. None where
    every request is refused without an edit.

    Args:
        rows: of :func:`family_rows`.
    """
    wide = rows.pivot(index="sample", columns="anchors", values="refused").astype(float)
    about = rows.groupby("sample")[["asked", "group", "kind"]].first().reindex(wide.index)
    others = wide.drop(columns=["no edit", ALL])
    inside = pd.Series({name: others.loc[name, about.loc[name, "asked"]] for name in wide.index})
    outside = (others.sum(axis=1) - inside) / (others.shape[1] - 1)
    lost = wide["no edit"] == 0
    if not lost.any():
        return None
    return paired_difference(
        outside[lost], inside[lost], groups=about["group"], strata=about["kind"]
    )


def mean_image(samples: Iterable[Sample]) -> Image.Image:
    """The mean of the samples' own images, pixel by pixel, at the size of the first.

    Raises:
        InputError: no sample has an image.
    """
    images = [image for sample in samples if (image := sample.load_image()) is not None]
    if not images:
        raise InputError("no sample has an image to take the mean of")
    total = sum(np.asarray(each.resize(images[0].size), dtype=np.float64) for each in images)
    return Image.fromarray(np.rint(total / len(images)).astype(np.uint8))
