"""Notebook 03: CMRM in its variants, and its controls."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from cmrm_utils.edits import Edit, Tokens
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.results.display import Answers, Shaded
from cmrm_utils.sample import Sample
from cmrm_utils.studies.evaluation import outcome_words
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial, grid
from cmrm_utils.vectors import ShiftVectors


def trials(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """03: examples, ways and reaches, controls, neutral words."""
    v, refusal = nb.anchors.shift(), nb.anchors.refusal()
    benign = nb.shift(nb.anchors.benign, "benign_blank")
    tests = controls(v, p["alpha"], refusal=refusal, benign=benign)
    requests = nb.samples("validation", p["n"], "harmful", "benign")
    questions = nb.questions("validation", p["n"])
    examples = nb.samples("validation", 3, "harmful", "benign")
    edit = CMRM(v, p["alpha"])
    yield [
        *grid(examples, images=["none", "own"]),
        *grid(examples, edits=[edit]),
        *grid([*requests, *questions], edits=[None, *ways(v, p["alphas"]), *tests]),
        *neutral(requests, nb.vlm.image_tokens),
        *grid(requests, images=["none"], edits=[None, edit]),
    ]


def ways(vectors: ShiftVectors, alphas: Iterable[float]) -> list[Edit]:
    """The shift as published, and each layer's own share of it; on all tokens, and the last on."""
    meanings = {"v": vectors, "u": vectors.increments()}
    reaches: dict[str, Tokens] = {"all tokens": "all", "from the last token on": "last"}
    return [
        CMRM(meanings[what], alpha, tokens=reaches[where], name=f"{what}, {where}")
        for what, where, alpha in product(meanings, reaches, alphas)
    ]


def controls(
    vectors: ShiftVectors, alpha: float, *, refusal: ShiftVectors, benign: ShiftVectors
) -> list[Edit]:
    """CMRM beside what it must be told from, all at one alpha.

    Args:
        vectors: the dataset-level shift v of harmful anchors.
        alpha: strength.
        refusal: the refusal direction (harmful minus benign, text only).
        benign: the shift of benign anchors.
    """
    against = refusal.scaled_like(vectors).scaled(-1.0)  # an edit subtracts: this adds refusal
    tests = {
        "CMRM": vectors,
        "negated": vectors.scaled(-1.0),
        **{f"random {seed}": vectors.random(seed) for seed in range(3)},
        "layers permuted": vectors.permuted(0),
        "refusal direction": against,
        "v without refusal": vectors.without(refusal),
        "v without refusal, at v's norm": vectors.without(refusal).scaled_like(vectors),
        "v, refusal part only": vectors.only(refusal),
        "benign anchors": benign,
        "benign anchors, at v's norm": benign.scaled_like(vectors),
    }
    return [
        *(CMRM(test, alpha, name=name) for name, test in tests.items()),
        CMRM(vectors, alpha, tokens="last", name="CMRM, last token on"),
    ]


def neutral(samples: Iterable[Sample], words: int) -> list[Trial]:
    """As many neutral words as an image has tokens in the image's place."""
    filler = "the " * words
    return [Trial(sample, "none", prompt=f"{filler}\n{sample.prompt}") for sample in samples]


def responses_beside(
    nb: Notebook, samples: Sequence[Sample], cases: Mapping[str, tuple[str, Edit | None]]
) -> Shaded:
    """What becomes of requests in several cases, a row a sample.

    Refusals are shown word for word, of every other response its outcome.

    Args:
        nb: the notebook.
        samples: those asked.
        cases: an image condition and an edit by name.
    """
    columns = {}
    for name, (image, edit) in cases.items():
        rows = nb.ask([Trial(sample, image, edit) for sample in samples])
        outcome = "(" + rows["outcome"].replace(outcome_words(rows)) + ")"
        columns[name] = rows["response"].where(rows["outcome"] == "refused", outcome).tolist()
    text = pd.DataFrame(columns, index=[sample.query for sample in samples])
    return Shaded(text, pd.DataFrame(np.nan, text.index, text.columns))


def predictions(back: pd.DataFrame, rates: pd.DataFrame) -> Answers:
    """The answers to what notebook 03 asks its reader to predict.

    Args:
        back: distance from the text-only state by layer, ``own image`` and ``edited``.
        rates: by control, a column a measure; with ``no edit``.
    """
    plain, edited = back[["own image", "edited"]].iloc[-1]
    sight = ("visual questions", "choices", "benign answered")
    useful = next(name for name in sight if name in rates)
    change = 100 * (rates.loc["CMRM"] - rates.loc["no edit"])
    towards, start = rates.loc["refusal direction"], rates.loc["no edit"]
    return Answers(
        {
            "1. Is the last layer's mean state nearer to text with the edit than without?": (
                edited < plain,
                f"Its distance is {edited:.2f} of |h| with the edit and {plain:.2f} without.",
            ),
            f"2. Does the edit change {useful} more than refusals?": (
                abs(change[useful]) > abs(change["refused"]),
                f"Points: {useful} {change[useful]:+.1f}, refused {change['refused']:+.1f}.",
            ),
            "3. Does the refusal direction, at v's norm, spare harmless requests?": (
                towards["over-refusal"] <= start["over-refusal"] + 0.05,
                f"It has {towards['refused']:.1%} of the harmful and "
                f"{towards['over-refusal']:.1%} of the harmless requests refused.",
            ),
        }
    )
