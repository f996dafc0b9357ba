"""Notebook 09: what images and edits do to more than safety."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import pandas as pd
import torch

from cmrm_utils.data.everyday import FOLDER
from cmrm_utils.data.load import load_samples
from cmrm_utils.edits import Edit
from cmrm_utils.engine.loops import first_logits
from cmrm_utils.errors import InputError
from cmrm_utils.judges.answers import mentions
from cmrm_utils.judges.fluency import continuation
from cmrm_utils.methods.base import Method, edited
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.models import VLM
from cmrm_utils.results.rates import means, measures, rates
from cmrm_utils.results.responses import table
from cmrm_utils.sample import Sample
from cmrm_utils.studies.attack import answer_losses
from cmrm_utils.studies.comparison import compared
from cmrm_utils.studies.first_token import FirstTokens, change_row
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.sweep import settings_lists
from cmrm_utils.trials import Trial, grid

ROWS = 16
"""Answers that are scored at once."""

LIKELY = "right answer's first token"
"""A measure of :func:`reasoning`."""


def reasoning_samples(nb: Notebook, n: int) -> list[Sample]:
    """So many sums and questions in two steps each, with images of the test split's samples."""
    rows = pd.read_json(FOLDER / "reasoning.jsonl", lines=True, dtype=str)
    rows = rows.groupby("kind", sort=False).head(n)
    images = [s.image for s in load_samples(nb.data, "test") if s.image is not None][: len(rows)]
    return [
        Sample(
            f"reasoning/{i}",
            row.question,
            images[i % len(images)] if images else None,
            answer=row.answer,
            kind="fact",
            group=f"{row.kind} {i}",
        )
        for i, row in enumerate(rows.itertuples())
    ]


def reasoning_trials(nb: Notebook, alphas: Sequence[float], n: int) -> dict[str, list[Trial]]:
    """The questions as text, beside a scene, and there under CMRM at each alpha."""
    samples = reasoning_samples(nb, n)
    own = "own" if samples[0].image is not None else "blank"
    plain, v = grid(samples, images=[own]), nb.anchors.shift()
    behind = {f"image, CMRM {alpha:g}": edited(plain, CMRM(v, alpha)) for alpha in alphas}
    return {"text": grid(samples, images=["none"]), "image": plain, **behind}


def reasoning(nb: Notebook, alphas: Sequence[float], n: int) -> pd.DataFrame:
    """How often an answer holds the right word, and how likely its first token is.

    Args:
        nb: whose model.
        alphas: of CMRM.
        n: questions of each kind.

    Returns:
        ``setting, measure, rate, low, high, n``: *right*, *right where the text was*, a share, and
        :data:`LIKELY`, its log-probability in nats.
    """
    lists = reasoning_trials(nb, alphas, n)
    trials = list(chain.from_iterable(lists.values()))
    rows = table(trials, nb.responses(trials))
    rows["setting"] = [name for name, these in lists.items() for _ in these]
    rows["hit"] = [mentions(*pair) for pair in zip(rows["response"], rows["answer"], strict=True)]
    first = [continuation(nb.vlm, trial, str(trial.sample.answer))[0] for trial in trials]
    likely = first_logits(nb.vlm, trials).log_softmax(-1)
    rows["likely"] = likely[torch.arange(len(trials)), torch.tensor(first)].tolist()
    known = rows[(rows["setting"] == "text") & rows["hit"]]["sample"]
    parts = [
        rates(rows, "hit", ["setting"]).assign(measure="right"),
        means(rows, "likely", ["setting"]).assign(measure=LIKELY),
    ]
    if len(known):
        kept = rates(rows[rows["sample"].isin(known)], "hit", ["setting"])
        parts.insert(1, kept.assign(measure="right where the text was"))
    return pd.concat(parts, ignore_index=True).drop(columns="hits")


def defences(nb: Notebook) -> dict[str, Method]:
    """The defences that model and data allow, each in one setting: its authors', or its last one.

    CMRM is left out, and ECSO, whose answer comes from a second question.
    """
    methods = compared(nb, [1.0], {})
    names = [name for name in methods if f"{name}, as published" not in methods]
    names = [name for name in names if name != "ECSO" and not name.startswith("CMRM")]
    return {name: replace(methods[name], settings=methods[name].settings[-1:]) for name in names}


def entanglement(
    tokens: FirstTokens, edits: Mapping[str, Edit | Method | VLM], n: int | None
) -> pd.DataFrame:
    """What each edit changes beside refusals.

    Args:
        tokens: refusals and sight.
        edits: by name; of a method its first setting; or a checkpoint that is asked unedited.
        n: facts, and benign requests of each kind, whose own answers are scored.

    Returns:
        ``edit, measure, change, low, high, n``, in nats: the measures of ``tokens``; the entropy of
        the first token (requests and questions beside their image); and the cross-entropy of the
        model's own answers, to facts beside an image and to benign requests as text.
    """
    nb = tokens.nb
    lists = {"facts, cross-entropy": nb.plainly(nb.facts("test", n))}
    try:
        benign = nb.samples("test", n, "benign")
    except InputError:
        benign = []
    # Nothing is shown, so a sample's own shift is none: they are samples of their own.
    bare = [replace(sample, id=f"{sample.id}, as text", image=None) for sample in benign]
    lists["text, cross-entropy"] = grid(bare, images=["none"])
    answers = {name: _answered(nb, these) for name, these in lists.items() if these}
    every = [*tokens.trials, *chain.from_iterable(trials for trials, _ in answers.values())]
    trained = {name: how for name, how in edits.items() if isinstance(how, VLM)}
    under = {name: _under(nb, how, every) for name, how in edits.items()}
    count = len(tokens.trials)
    own = [name for name in edits if name not in trained]
    changes = dict(zip(own, tokens.changes([under[name][:count] for name in own]), strict=True))
    for name, vlm in trained.items():
        (changes[name],) = tokens.changes([tokens.trials], vlm)
    rows = [{"edit": name, **row} for name in edits for row in changes[name]]
    start = _entropies(nb.vlm, tokens.trials)
    before = {measure: _losses(nb.vlm, *pair) for measure, pair in answers.items()}
    for name, trials in under.items():
        vlm, rest = trained.get(name, nb.vlm), iter(trials[count:])
        after = _entropies(vlm, trials[:count])
        rows.append({"edit": name, **_change("first token, entropy", tokens.trials, start, after)})
        for measure, (plain, ids) in answers.items():
            after = _losses(vlm, list(islice(rest, len(plain))), ids)
            rows.append({"edit": name, **_change(measure, plain, before[measure], after)})
    return pd.DataFrame(rows)


def _under(nb: Notebook, how: Edit | Method | VLM, trials: Sequence[Trial]) -> list[Trial]:
    """The trials under an edit, or a method's first setting; as they are for a checkpoint."""
    if isinstance(how, Method):
        return settings_lists(nb, how, trials)[0]
    return edited(trials, how) if isinstance(how, Edit) else list(trials)


def _change(
    measure: str, trials: Sequence[Trial], before: Sequence[float], after: Sequence[float]
) -> dict[str, Any]:
    about = table(trials, [""] * len(trials))
    return change_row(measure, about, pd.Series(before), pd.Series(after))


def _entropies(vlm: VLM, trials: Sequence[Trial]) -> list[float]:
    log_p = first_logits(vlm, trials).log_softmax(-1)
    return (-(log_p.exp() * log_p).sum(-1)).tolist()


def _answered(nb: Notebook, trials: list[Trial]) -> tuple[list[Trial], list[tuple[int, ...]]]:
    """The trials that the model says something to, and the tokens of what it says."""
    said = [(t, tuple(r.ids)) for t, r in zip(trials, nb.answers(trials), strict=True) if r.ids]
    return [trial for trial, _ in said], [ids for _, ids in said]


@torch.inference_mode()
def _losses(vlm: VLM, trials: Sequence[Trial], answers: Sequence[tuple[int, ...]]) -> list[float]:
    parts = [
        answer_losses(vlm, trials[i : i + ROWS], answers[i : i + ROWS])
        for i in range(0, len(trials), ROWS)
    ]
    return torch.cat(parts).tolist() if parts else []


EXTENDED = ("harmful-written", "benign-written", "reading", "maker", "unknown")
"""Kinds that the invented world may have: requests whose verb is written in the picture alone,
reading it, and questions of which the last are those that nobody can answer."""

AS_TEXT = ("maker", "unknown")
"""Those that can be asked without their picture too."""


def extended_trials(nb: Notebook, alphas: Sequence[float], n: int | None) -> list[list[Trial]]:
    """Test samples of the kinds :data:`EXTENDED`, unedited and under CMRM; a list a kind.

    With their own image; those of :data:`AS_TEXT` as text too.
    """
    test, lists = load_samples(nb.data, "test"), []
    for kind in EXTENDED:
        these = [s for s in test if s.kind == kind][:n]
        if these:
            v = nb.anchors.shift()
            edits = [None, *(CMRM(v, alpha) for alpha in alphas)]
            text = grid(these, images=["none"]) if kind in AS_TEXT else []
            lists.append([*text, *grid(these, edits=edits)])
    return lists


def extended(nb: Notebook, alphas: Sequence[float], n: int | None) -> pd.DataFrame | None:
    """:func:`cmrm_utils.results.rates.measures` by ``kind, image, method, alpha``.

    None, and a line that says so, where the data has no such kinds.
    """
    lists = extended_trials(nb, alphas, n)
    if not lists:
        print(f"no requests are written in pictures in {nb.data}: organism-extended has them")
        return None
    trials = list(chain.from_iterable(lists))
    return measures(nb.ask(trials), ["kind", "image", "method", "alpha"])
