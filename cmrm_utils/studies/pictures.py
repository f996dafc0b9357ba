"""Notebook 09: pictures that are perturbed or made to attack."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from PIL import Image

from cmrm_utils.engine.batch import log_odds
from cmrm_utils.engine.loops import first_logits
from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import edited
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.results.rates import LOG_ODDS, means
from cmrm_utils.results.responses import table
from cmrm_utils.studies.first_token import FirstTokens
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial, grid

PERTURBED = ("blank", "own", "blur", "gaussian-64", "crop-50")
"""Image conditions that stand beside the pictures of an attack."""

NO_EDIT = "no edit"


def attacked(nb: Notebook) -> dict[str, Image.Image]:
    """The run's adversarial pictures, and one with its worst squares grey.

    None where no gradient goes through the processor, which a line says.
    """
    try:
        pairs = nb.anchors.pictures()
    except InputError as error:
        print(error)
        return {}
    whole = {f"attack {i + 1}": picture for i, (picture, _) in enumerate(pairs)}
    return {**whole, "attack 1, masked": pairs[0][1]}


def picture_odds(
    tokens: FirstTokens, pictures: Mapping[str, Image.Image], alphas: Sequence[float]
) -> pd.DataFrame:
    """Refusal log-odds of the harmful requests beside each picture, without and with CMRM.

    Args:
        tokens: whose harmful requests.
        pictures: beside :data:`PERTURBED`, as every request's own image.
        alphas: of CMRM.

    Returns:
        ``picture, method, rate`` (mean log-odds, nats) ``low, high, n``; empty for a model that
        has no refusal log-odds.
    """
    samples = [trial.sample for trial in tokens.trials if trial.sample.harmful]
    if not tokens.openers or not samples:
        print(f"{tokens.nb.vlm.name} has no refusal log-odds: pictures are not compared")
        return pd.DataFrame()
    lists: dict[str, list[Trial]] = {name: grid(samples, images=[name]) for name in PERTURBED}
    for name, picture in pictures.items():
        lists[name] = grid([replace(sample, image=picture) for sample in samples])
    v = tokens.nb.anchors.shift()
    edits = {NO_EDIT: None, **{f"CMRM {alpha:g}": CMRM(v, alpha) for alpha in alphas}}
    rows = []
    for method, edit in edits.items():
        for name, plain in lists.items():
            trials = edited(plain, edit) if edit else plain
            odds = log_odds(first_logits(tokens.nb.vlm, trials), tokens.openers).tolist()
            about = table(trials, [""] * len(trials))
            rows.append(about.assign(**{LOG_ODDS: odds, "picture": name, "method": method}))
    found = means(pd.concat(rows), LOG_ODDS, ["picture", "method"])
    return found.drop(columns="hits")
