"""Notebook 09: pictures that are perturbed or made to attack."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from cmrm_utils.conditions import IMAGES, OF_OWN
from cmrm_utils.judges.outcomes import OUTCOMES
from cmrm_utils.results.rates import MEASURES, REST, measures, paired_changes
from cmrm_utils.studies.abilities import EDITS, requests, with_edits
from cmrm_utils.studies.attack import Attack, attack, target_of
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.sweep import Chosen
from cmrm_utils.trials import Trial, grid


def perturbed_trials(nb: Notebook, chosen: Chosen, n: int | None) -> list[Trial]:
    """Test requests and questions with their own images and perturbed, unedited and edited."""
    samples = [*requests(nb, "test", n), *nb.questions("test", n)]
    with_image = [sample for sample in samples if sample.image is not None]
    return with_edits(nb, chosen, grid(with_image, images=OF_OWN))


def perturbed(nb: Notebook, chosen: Chosen, n: int | None) -> pd.DataFrame:
    """:func:`cmrm_utils.results.rates.measures` by image and method."""
    return measures(nb.ask(perturbed_trials(nb, chosen, n)), ["image", "method"])


def attacks(
    nb: Notebook, chosen: Chosen, *, epsilons: Sequence[int], steps: int, target: str = ""
) -> dict[tuple[str, str], Attack]:
    """Pictures found by gradient on the harmful anchors, from a blank one.

    Args:
        nb: whose model.
        chosen: the methods as chosen.
        epsilons: how far pixels may go, in levels, in attacks on the plain model; attacks that
            know an edit have no bound.
        steps: of each search.
        target: what answers are to begin with; empty for the beginnings of the world's own answers.

    Returns:
        By what the picture is, and the edit in place during its search (``none``).

    Raises:
        InputError: a processor that no gradient goes through.
    """
    anchors = nb.anchors.harmful
    plain = [Trial(sample, "none") for sample in anchors]
    targets = [target or target_of(sample) for sample in anchors]
    start = IMAGES["blank"](anchors[0])
    assert start is not None
    searches = {
        ("unbounded" if bound >= 255 else f"within {bound} levels", "none"): (plain, bound)
        for bound in epsilons
    }
    for method in EDITS:
        searches[f"unbounded, knows {method}", method] = chosen.edited(nb, method, plain), 255
    return {
        names: attack(nb.vlm, trials, targets, start, epsilon=bound, steps=steps)
        for names, (trials, bound) in searches.items()
    }


def adversarial(
    nb: Notebook,
    chosen: Chosen,
    results: Mapping[tuple[str, str], Attack],
    n: int | None,
    n_test: int | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pictures as ordinary images of validation and test requests, beside a blank one.

    Pictures found against the plain model are tried without an edit and under each; one that
    knows an edit, under that one.

    Returns:
        ``split, picture, method, measure, rate, low, high, hits, n``; and ``split, picture, method,
        knows, change, low, high`` of the share refused against the blank image under the same
        method, paired; ``knows``: made against the edit.
    """
    shares, changes = [], []
    for split, count in (("validation", n), ("test", n_test)):
        samples = requests(nb, split, count)
        lists = {"blank": with_edits(nb, chosen, grid(samples, images=["blank"]))}
        for (name, knows), result in results.items():
            plain = grid([replace(sample, image=result.image) for sample in samples])
            none = knows == "none"
            lists[name] = with_edits(nb, chosen, plain) if none else chosen.edited(nb, knows, plain)
        rows = nb.ask_lists(lists, "picture")
        by = ["picture", "method"]
        shares.append(measures(rows, by).assign(split=split))
        against = pd.concat(
            paired_changes(these, "picture", "blank").assign(split=split, method=method)
            for method, these in rows[rows["task"] == "harmful"].groupby("method")
        )
        changes.append(against[against["measure"] == "refused"].sort_values(by))
    every = pd.concat(changes, ignore_index=True)
    every["knows"] = [(name, "none") not in results for name in every["picture"]]
    columns = ["split", "picture", "method", "knows", "change", "low", "high"]
    return pd.concat(shares, ignore_index=True), every[columns]


def outcome_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of the three outcomes by ``setting``, picture and method, for a bar each.

    Args:
        rows: one split of :func:`adversarial`'s first table.
    """
    by = ["picture", "method"]
    refused = rows[rows["measure"] == "refused"].set_index(by)
    counted = rows.assign(outcome=rows["measure"].map({n: m.hit for n, m in MEASURES.items()}))
    counts = counted[counted["measure"].isin(("refused", *REST))]
    sums = counts.groupby([*by, "outcome"])[["hits", "n"]].sum()
    shares = (sums["hits"] / sums["n"]).unstack().reindex(columns=list(OUTCOMES), fill_value=0.0)
    wide = shares.loc[refused.index].join(refused[["low", "high"]])
    names = [f"{p}; {'no edit' if m == 'none' else m}" for p, m in wide.index]
    return wide.reset_index(drop=True).assign(setting=names)
