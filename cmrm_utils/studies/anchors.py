"""Notebook 09: what a vector is taken on, and how."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import edited
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.sample import Sample
from cmrm_utils.studies.first_token import FirstTokens
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.vectors import ShiftVectors, extract_shift, shifts

IMAGES = ("noise", "black", "blur")
"""Meaningless images that vectors are taken with, beside the blank one."""

Sets = dict[tuple[str, str], ShiftVectors]
"""Vectors by what is varied, and by the value it has."""


def anchor_sets(nb: Notebook, sizes: Sequence[int], n: int) -> Sets:
    """Vectors that differ from v in one thing each, as long as v is in every layer.

    *unit scale* is the exception: as long in every layer as v is on average.

    Args:
        nb: whose model and anchors; all its harmful anchors give v.
        sizes: numbers of harmful anchors; each is taken twice, from either end of ``n`` of them.
        n: how many anchors the other sets have.

    Raises:
        InputError: a size above ``n``.
    """
    if too_many := [size for size in sizes if size > n]:
        raise InputError(f"sizes = {too_many}: there are n_anchors = {n}")
    v, few = nb.anchors.shift(), nb.anchors.harmful[:n]
    each = shifts(nb.vlm, few)
    sets: Sets = {("number", f"all {len(nb.anchors.harmful)}"): v}
    for size in sorted(sizes):
        sets["number", f"{size}, first"] = _mean(each[:size])
        sets["number", f"{size}, last"] = _mean(each[-size:])
    sets["requests", f"{len(few)} harmful"] = _mean(each)
    others = {"benign": nb.anchors.benign, "questions": nb.questions("anchors", n)}
    for name, these in others.items():
        if these:
            sets["requests", f"{len(these[:n])} {name}"] = _mean(shifts(nb.vlm, these[:n]))
    seen = [sample for sample in few if sample.image is not None]
    for image in IMAGES:
        if image != "blur" or len(seen) == len(few):
            sets["image", image] = _mean(shifts(nb.vlm, few, meaningless=image))
    if len(seen) == len(few):
        sets["image", "own"] = _mean(shifts(nb.vlm, few, meaningless="own"))
    if len(seen) > 1:
        sets["image", "another's"] = _mean(shifts(nb.vlm, _exchanged(seen), meaningless="own"))
    if len(few) > 1:
        sets["estimator", "first component"] = extract_shift(nb.vlm, few, estimator="pc1")
    sets["control", "random"] = v.random(0)
    sets = {key: one.scaled_like(v) for key, one in sets.items()}
    length = v.norms.square().mean().sqrt()
    sets["estimator", "unit scale"] = ShiftVectors(normalize(v.values, dim=-1) * length)
    return dict(sorted(sets.items(), key=lambda one: _ORDER.index(one[0][0])))


_ORDER = ("number", "requests", "image", "estimator", "control")


def _mean(differences: Tensor) -> ShiftVectors:
    return ShiftVectors(differences.double().mean(0).to(torch.float32))


def _exchanged(samples: Sequence[Sample]) -> list[Sample]:
    """Each sample with the image of the one before it."""
    return [replace(s, image=samples[i - 1].image) for i, s in enumerate(samples)]


def anchor_effects(tokens: FirstTokens, sets: Sets, alphas: Sequence[float]) -> pd.DataFrame:
    """What each vector does to the first response token.

    Args:
        tokens: what is measured.
        sets: of :func:`anchor_sets`.
        alphas: strengths.

    Returns:
        ``varied, set, alpha, cosine`` (with v, the mean over layers), and the columns of
        :meth:`FirstTokens.changes`.
    """
    v = tokens.nb.anchors.shift()
    tried = [(key, one, alpha) for key, one in sets.items() for alpha in alphas]
    changes = tokens.changes([edited(tokens.trials, CMRM(one, a)) for _, one, a in tried])
    rows = []
    for ((varied, name), one, alpha), measured in zip(tried, changes, strict=True):
        about = {"varied": varied, "set": name, "alpha": alpha}
        about["cosine"] = float(one.cosine(v).mean())
        rows += [{**about, **row} for row in measured]
    return pd.DataFrame(rows)
