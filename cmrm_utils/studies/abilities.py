"""Notebook 09: what images and edits do to more than safety."""

from collections.abc import Iterable, Sequence

import pandas as pd

from cmrm_utils.data.load import load_samples
from cmrm_utils.results.intervals import paired_difference
from cmrm_utils.results.rates import UNSEEN, measures, rates
from cmrm_utils.sample import Sample
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.sweep import Chosen
from cmrm_utils.trials import Trial, grid

EDITS = ("CMRM dataset", "CMRM sample")
"""The edits that pictures and questions are tried with, each at the alpha chosen on validation."""


def requests(nb: Notebook, split: str, n: int | None) -> list[Sample]:
    """Harmful and benign requests, but for unseen and written verbs, which are looked at apart."""
    samples = nb.samples(split, n, "harmful", "benign")
    return [sample for sample in samples if sample.kind not in (UNSEEN, *EXTENDED)]


def with_edits(
    nb: Notebook, chosen: Chosen, trials: Sequence[Trial], names: Iterable[str] = EDITS
) -> list[Trial]:
    """The trials as they are, and under each of the named methods as chosen."""
    return [*trials, *(trial for name in names for trial in chosen.edited(nb, name, trials))]


def questions(nb: Notebook, n: int | None) -> dict[str, list[Sample]]:
    """Test questions by what they ask: facts, counting, and the other visual questions."""
    every = [s for s in load_samples(nb.data, "test") if s.image is not None]
    by = {
        "facts": [s for s in every if s.task == "fact"],
        "counting": [s for s in every if s.kind == "count"],
        "other visual questions": [s for s in every if s.task == "visual" and s.kind != "count"],
    }
    return {name: these[:n] for name, these in by.items() if these}


def beyond_trials(nb: Notebook, chosen: Chosen, n: int | None) -> dict[str, list[Trial]]:
    """Facts without and with images, unedited and edited; visual questions likewise.

    What an image shows cannot be asked of a blank one: visual questions have their own image, or
    its caption.
    """
    lists = {}
    for name, these in questions(nb, n).items():
        images = ("own", "blank") if name == "facts" else ("own",)
        words = ("none", "caption", "noise") if name == "facts" else ("caption",)
        plain = grid(these, images=images)
        lists[name] = [*grid(these, images=words), *with_edits(nb, chosen, plain)]
    return lists


def beyond(nb: Notebook, chosen: Chosen, n: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares of right answers, and what changes them, paired.

    Returns:
        ``measure, image, method, rate, low, high, hits, n``; and ``measure, image, method, against,
        change, low, high``: images without an edit against text only (visual questions: against
        the caption), edits against the same image without one. Intervals are clustered by group,
        within each kind.
    """
    shares, changes = [], []
    for name, trials in beyond_trials(nb, chosen, n).items():
        rows = nb.ask(trials).assign(measure=name)
        rows["right"] = rows["right"].astype(bool)
        shares.append(rates(rows, "right", ["measure", "image", "method"]))
        about = rows.groupby("sample")[["group", "kind"]].first()
        like = {"groups": about["group"], "strata": about["kind"]}
        cells = dict(list(rows.set_index("sample").groupby(["image", "method"])["right"]))
        plain = "none" if name == "facts" else "caption"
        for image, method in cells:
            against = (plain, "none") if method == "none" else (image, "none")
            if (image, method) != against:
                change = paired_difference(cells[against], cells[image, method], **like)
                changes.append((name, image, method, against[0], *change))
    columns = ["measure", "image", "method", "against", "change", "low", "high"]
    whole = pd.concat(shares, ignore_index=True) if shares else pd.DataFrame(columns=columns[:3])
    return whole, pd.DataFrame(changes, columns=columns)


EXTENDED = ("harmful-written", "benign-written", "reading", "maker", "unknown")
"""Kinds that a world may have: requests whose verb is written in the picture alone, reading it,
and questions of which the last are those that nobody can answer."""


AS_TEXT = ("maker", "unknown")
"""Those that can be asked without their picture too."""


def extended_trials(nb: Notebook, chosen: Chosen, n: int | None) -> list[Trial]:
    """Samples of the kinds :data:`EXTENDED` on the test split, unedited and edited; perhaps none.

    With their own image; those of :data:`AS_TEXT` as text too.
    """
    test = load_samples(nb.data, "test")
    trials = []
    for kind in EXTENDED:
        these = [sample for sample in test if sample.kind == kind][:n]
        if these:
            trials += grid(these, images=["none"]) if kind in AS_TEXT else []
            trials += with_edits(nb, chosen, grid(these))
    return trials


def extended(nb: Notebook, chosen: Chosen, n: int | None) -> pd.DataFrame | None:
    """:func:`cmrm_utils.results.rates.measures` by kind, image and method of :data:`EXTENDED`.

    None, and a line that says so, where the data has none.
    """
    trials = extended_trials(nb, chosen, n)
    if not trials:
        print(
            "no verbs written in pictures in the data, and nothing unknown: organism-extended has"
        )
        return None
    return measures(nb.ask(trials), ["kind", "image", "method"])
