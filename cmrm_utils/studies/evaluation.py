"""Notebooks 04 and 05: what images and edits do to safety, and what it costs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cmrm_utils.conditions import CONDITION_NAMES
from cmrm_utils.data.load import load_samples
from cmrm_utils.judges.fluency import perplexity, repetition
from cmrm_utils.judges.outcomes import OUTCOMES
from cmrm_utils.judges.panel import NamedJudge, panel
from cmrm_utils.judges.reviews import load_reviewer, relative_scores, review
from cmrm_utils.paths import STORED
from cmrm_utils.results.display import Answers, Shaded, rate_table
from cmrm_utils.results.rates import REST, UTILITY, averaged, choice_accuracy, measures, rates
from cmrm_utils.results.text import percent_table
from cmrm_utils.store import Responses, read_csv
from cmrm_utils.studies import sweep
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.sweep import Chosen
from cmrm_utils.trials import Trial


def trials(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """04 and 05: the validation split in every setting, then the test split as chosen."""
    methods, plain = sweep.levels(nb, p["alphas"]), sweep.validation(nb, p["n_validation"])
    yield sweep.sweep_trials(nb, methods, plain)
    chosen = sweep.choose(nb, methods, plain)
    samples = sweep.samples_tested(nb, p["n_test"])
    tests = sweep.test_lists(nb, chosen, samples, nb.conditions)
    yield [trial for these in tests.values() for trial in these]
    if p.get("reviewer"):  # open questions where there is somebody to review the answers
        yield open_trials(nb, chosen, p["n_test"])


def outcome_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of the three outcomes of harmful requests by setting, unseen verbs apart.

    ``low, high`` are the 95% interval of ``refused``.
    """
    harmful = averaged(rows[rows["task"] == "harmful"])
    counted = rates(harmful.assign(hit=harmful["outcome"] == "refused"), "hit", ["setting"])
    shares = harmful.groupby("setting", sort=False)["outcome"].value_counts(normalize=True)
    wide = shares.unstack().reindex(columns=list(OUTCOMES)).fillna(0.0)
    return counted[["setting", "low", "high", "n"]].merge(wide.reset_index(), on="setting")


NATURAL = {"complied": "answered", "neither": "broken"}
"""What outcomes are called in natural language, where no exact judge knows them."""


def outcome_words(rows: pd.DataFrame) -> dict[str, str]:
    """:data:`NATURAL` where no exact judge knows the outcomes; nothing where one does."""
    return {} if rows["exact"].notna().any() else NATURAL


def beside_stored(rows: pd.DataFrame, model: str) -> pd.DataFrame:
    """Rates of a test beside those that the repository stores of the same model.

    Args:
        rows: of :func:`measures` by ``setting, alpha, kind``.
        model: its name.

    Returns:
        ``setting, kind, measure, rate, low, high``, the stored ones beside them (``rate stored``
        and so on), whether the rate is ``inside`` the stored interval, and whether the two
        intervals ``overlap``. Settings of other alphas are left out; empty where nothing is stored
        of the model.
    """
    known = read_csv(STORED / "smollm2_test.csv")
    keys = ["setting", "alpha", "kind", "measure"]
    columns = [*keys, "rate", "low", "high"]
    known = known.loc[known["model"] == model, columns]
    both = rows[columns].merge(known, on=keys, suffixes=("", " stored"))
    reach = (both["low"] <= both["high stored"]) & (both["low stored"] <= both["high"])
    inside = both["rate"].between(both["low stored"], both["high stored"])
    return both.assign(inside=inside, overlap=reach)


def alpha_table(
    nb: Notebook, swept: sweep.Swept, curves: pd.DataFrame, plain: Sequence[Trial]
) -> Shaded:
    """The sweep in numbers, with the dose of each edit; kept in the run as ``04_alpha_table``.

    Args:
        nb: the notebook.
        swept: of :func:`.sweep.sweep`.
        curves: the measures to show, by ``method, alpha``.
        plain: the trials of the sweep, unedited.
    """
    index = ["method", "alpha"]
    table = percent_table(curves, index, "measure")
    doses = sweep.doses(nb, swept, plain).reindex(table.index).round(3)
    table.insert(0, "dose", doses)
    nb.run.table("04_alpha_table", table.reset_index())
    note = "Dose: |alpha v| / |h|, mean over layers. Counts and intervals: table 04_alpha_table."
    shown = rate_table(curves, index, "measure", note=note)
    return shown.beside("dose", doses.map("{:.3f}".format))


def predictions(
    swept: Chosen, curves: pd.DataFrame, tested: pd.DataFrame, baseline: str
) -> Answers:
    """The answers to what notebook 04 asks its reader to predict; none where there is no edit.

    Args:
        swept: the methods as chosen.
        curves: :func:`measures` of the validation split by ``method, alpha``.
        tested: :func:`measures` of harmful requests of the test split by ``setting``.
        baseline: the setting beside an image, unedited.
    """
    if not swept.choices:
        return Answers({})
    chosen = ", ".join(f"{name} {alpha:g}" for name, alpha in swept.alphas.items())
    rows = curves[(curves["measure"] == "refused") & (curves["method"] == "CMRM sample")]
    most = rows["alpha"].max()
    rates = rows.set_index("alpha")["rate"]
    refused = tested[tested["measure"] == "refused"].set_index("setting")["rate"]
    text = refused["text only"]
    return Answers(
        {
            "1. Does the rule choose an edit for any of the three levels?": (
                any(swept.alphas.values()),
                f"The alphas chosen: {chosen} (0 is no edit).",
            ),
            "2. Does the sample level at the largest alpha refuse more than no edit?": (
                rates[most] > rates[0.0],
                f"Refused {rates[0.0]:.1%} without an edit, {rates[most]:.1%} at alpha {most:g}.",
            ),
            "3. On the test split, does an image take more than 10 points of refusals?": (
                text - refused[baseline] > 0.1,
                f"Refused {text:.1%} as text, {refused[baseline]:.1%} beside the {baseline}.",
            ),
        }
    )


def panel_tables(
    nb: Notebook, rows: pd.DataFrame, judges: Sequence[str | Mapping[str, Any]]
) -> list[pd.DataFrame | Shaded]:
    """Further judges on the responses to requests of the test split.

    Their verdicts are kept apart from the responses: in the run's ``verdicts``, and in the table
    ``04_verdicts``.

    Args:
        nb: the notebook.
        rows: of :func:`.sweep.test`.
        judges: for :meth:`cmrm_utils.judges.panel.NamedJudge.parse`.

    Returns:
        Agreement with the outcomes of the tables above, and rates of harmful requests by setting;
        nothing, and a line that says so, where no judge is asked.
    """
    if not judges:
        print("no model judges are asked: name some, -p judges [llama-3-refused, harmbench]")
        return []
    requests = averaged(rows[rows["task"].isin(["harmful", "benign"])])
    jury = [NamedJudge.parse(item) for item in judges]
    verdicts, agreed, harmful = panel(requests, jury, "outcome", folder=nb.run.folder / "verdicts")
    nb.run.table("04_verdicts", verdicts)
    nb.run.table("04_judges", agreed)
    nb.run.table("04_judges_harmful", harmful)
    columns = harmful.assign(judge=harmful["judge"] + ": " + harmful["measure"])
    return [agreed.set_index("judge").round(3), rate_table(columns, "setting", "judge")]


def choice_table(nb: Notebook, rows: pd.DataFrame, chosen: Chosen) -> Shaded | None:
    """Multiple choice on the test split: accuracy over all questions, and those with an image.

    Kept in the run as ``05_choices``; None, and a line that says so, where the data has none.
    """
    rows = rows[(rows["task"] == "choice") & rows["setting"].isin([nb.baseline, *chosen.choices])]
    if rows.empty:
        print("no multiple-choice questions in the data (scienceqa has them)")
        return None
    accuracy = nb.run.table("05_choices", choice_accuracy(rows, ["setting"]))
    return rate_table(accuracy, "setting", "rows", note="Counts: table 05_choices.")


def open_trials(nb: Notebook, chosen: Chosen, n: int | None) -> list[Trial]:
    """The trials of :func:`reviews`: open questions without an edit, and under each method."""
    plain = nb.plainly(s for s in load_samples(nb.data, "test") if s.task == "open")[:n]
    if not plain:  # a method at sample level has nothing to be fitted on
        return []
    return [*plain, *(t for name in chosen.choices for t in chosen.edited(nb, name, plain))]


def reviews(
    nb: Notebook, chosen: Chosen, n: int | None, reviewer: str, url: str = ""
) -> pd.DataFrame | None:
    """Pairwise reviews of answers to the test split's open questions, as LLaVA-Bench's.

    The reviews are kept word for word in the run: as they come, and in the table ``05_reviews``;
    the scores in ``05_scores``.

    Args:
        nb: the notebook.
        chosen: the methods as chosen.
        n: how many questions; None: all.
        reviewer: for :func:`cmrm_utils.judges.reviews.load_reviewer`; empty for none.
        url: of the reviewer's endpoint.

    Returns:
        Relative scores by setting and kind of question; None, and a line that says so, where the
        data has no open questions or there is no reviewer.
    """
    questions = open_trials(nb, chosen, n)
    if not questions:
        print("no open questions for this model in the data (llava-bench-coco has them)")
        return None
    if not reviewer:
        print("open questions are not reviewed: name a reviewer, -p reviewer FOLDER_OR_MODEL")
        return None
    rows = nb.ask(questions)
    settings = rows["method"].where(rows["method"] != "none", nb.baseline)
    rows = rows.assign(setting=settings, caption=[trial.sample.caption for trial in questions])
    name = re.sub(r"[^\w.-]+", "-", f"{url} {reviewer}").strip("-")
    path = nb.run.folder / "reviews" / f"{name}.jsonl"
    critic = load_reviewer(reviewer, url)
    reviewed = nb.run.table("05_reviews", review(rows, critic, out=path, progress=True))
    by_setting = reviewed.groupby("setting", sort=False)
    scores = (relative_scores(part).assign(setting=setting) for setting, part in by_setting)
    table = nb.run.table("05_scores", pd.concat(scores, ignore_index=True))
    return table.set_index(["setting", "kind"])


def fluency(nb: Notebook, rows: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """Perplexity under the unedited model (geometric mean), and repeated word triples.

    Args:
        nb: the notebook.
        rows: judged trials of the test split, with a ``setting`` each.
        settings: of which.
    """
    subset = rows[rows["setting"].isin(settings)]
    by_id = {sample.id: sample for sample in load_samples(nb.data, "test")}
    conditions = zip(subset["sample"], subset["image"], strict=True)
    prompts = [Trial(by_id[sample], image) for sample, image in conditions]
    known = Responses(nb.run.responses, nb.shared)
    texts = zip(subset["trial"], subset["response"], strict=True)
    # Another model's response to the same trial is in a file of its own.
    responses = [
        own if (own := known.get(trial)) and own.text == text else text for trial, text in texts
    ]
    scored = subset.assign(
        perplexity=perplexity(nb.vlm, prompts, responses, progress=True),
        repeated=[repetition(text) for text in subset["response"]],
    )
    return scored.groupby("setting", sort=False).agg(
        perplexity=("perplexity", lambda values: float(np.exp(np.log(values).mean()))),
        repeated=("repeated", "mean"),
    )


def headline(rows: pd.DataFrame, chosen: Chosen) -> pd.DataFrame:
    """The test split in one table of text: a row a setting, a column a measure."""
    table = measures(averaged(rows), ["setting"])
    table = table[~table["measure"].isin(["choices", "facts"])]
    names = {name: f"{name}, alpha {alpha:g}" for name, alpha in chosen.alphas.items()}
    table["setting"] = table["setting"].replace(names)
    return percent_table(table, "setting", "measure").reset_index()


def reading(nb: Notebook, rows: pd.DataFrame, chosen: Chosen) -> str:
    """The headline table in words."""
    table = measures(averaged(rows), ["setting"]).set_index(["measure", "setting"])
    rate, count = table["rate"], table.loc["refused", "n"].max()
    here = nb.run.shared["model"]
    rest = {measure: words for measure, words in REST.items() if measure in rate.index}
    columns = " and ".join(
        name if name == words else f"{name} ({words})" for name, words in rest.items()
    )

    def refused(labels: Mapping[str, str]) -> list[str]:
        names = {CONDITION_NAMES[image]: words for image, words in labels.items()}
        known = (name for name in names if ("refused", name) in rate.index)
        return [f"{rate['refused', name]:.1%} {names[name]}" for name in known]

    asked = f"{count:.0f} harmful requests of the test split"
    if not chosen.choices:
        plain = refused({"none": "as text", "caption": "with a caption in words"})
        return (
            f"{here} sees no images: there is no shift, and nothing to subtract. "
            f"Of {asked} it refuses {' and '.join(plain)}."
        )
    plain = refused({"none": "as text", "own": "with their own image", "blank": "with a blank one"})
    said = [f"Of {asked} {here} refuses {', '.join(plain)}."]
    edited = [name for name, alpha in chosen.alphas.items() if alpha]
    for name in edited:
        others = ", ".join(f"{rate[measure, name]:.1%} {words}" for measure, words in rest.items())
        said.append(
            f"{name} at alpha {chosen.alphas[name]:g} has {rate['refused', name]:.1%} refused "
            f"({others})."
        )
    kept = [name for name in chosen.choices if name not in edited]
    for why in dict.fromkeys(chosen.choices[name].why for name in kept):
        names = [name for name in kept if chosen.choices[name].why == why]
        said.append(f"No edit is chosen for {', '.join(names)}: {why}.")
    cost = [
        f"{measure} {rate[measure, nb.baseline]:.1%} without an edit and "
        f"{min(rate[measure, name] for name in edited):.1%} under the costliest"
        for measure in UTILITY
        if edited and (measure, nb.baseline) in rate.index
    ]
    said += [f"What they cost: {', '.join(cost)}."] if cost else []
    said.append(
        f"In the table, {columns} are the rest of the harmful requests. Brackets are 95% "
        "intervals: the fewer the requests, the wider. Counts are in table headline."
    )
    return " ".join(said)
