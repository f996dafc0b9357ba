"""Notebook 00: one request beside one picture, without an edit and with one.

What is typed is kept nowhere. Only what methods learn of the anchors goes into the run's folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from typing import Any

import pandas as pd
import torch
from IPython.display import HTML, Image
from markupsafe import Markup
from PIL import ImageOps
from PIL.Image import Resampling

from cmrm_utils.conditions import CONDITION_NAMES
from cmrm_utils.data.load import load_samples
from cmrm_utils.edits import GENERATED, IMAGE, PADDING, REACH, Edit
from cmrm_utils.engine.inputs import inputs_alone, token_kinds
from cmrm_utils.engine.loops import first_logits, generate, respond
from cmrm_utils.errors import InputError, unknown
from cmrm_utils.judges.keywords import is_refusal
from cmrm_utils.methods.base import Settings
from cmrm_utils.methods.cmrm import LEVELS
from cmrm_utils.methods.registry import METHODS, label
from cmrm_utils.models import VLM
from cmrm_utils.results import plots
from cmrm_utils.sample import Sample
from cmrm_utils.store import Response
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.sweep import NO_EDIT
from cmrm_utils.trials import Trial

LONGEST = 60
"""Tokens at which an answer in the playground is cut."""

LIKELIEST = 10
"""Words of the first token that are shown."""

SIDE = 144
"""Pixels of the longer side of a picture as it is shown."""

EXCERPT = 8
"""Words of an answer that the repository keeps, at most."""

TYPED = "typed"
"""The id of the sample that a question is."""

TOUCHED = "background: #E69F00; color: #000000; border-radius: 3px;"
"""How tokens look that an edit touches; black on orange reads on a light and on a dark page."""


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked, and what is done to the model.

    Attributes:
        request: the text.
        picture: a picture, whose caption says what it shows; None for no picture.
        condition: the image condition.
        method: one of :data:`METHODS`.
        setting: of the method; alpha 0 is no edit.
        layers: the first and the last decoder layer that may be edited, from 0 on; None: all.
    """

    request: str
    picture: Sample | None = None
    condition: str = "own"
    method: str = "CMRM dataset"
    setting: Settings = field(default_factory=lambda: {"alpha": 0.2})
    layers: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model makes of a trial.

    Attributes:
        trial: the trial.
        name: of the edit, with its setting.
        response: the answer, with the refusal log-odds where the model has any.
        likeliest: the likeliest first tokens as text, each with its probability.
        tokens: the prompt's tokens as text, an image's as one, and whether the edit touches them.
    """

    trial: Trial
    name: str
    response: Response
    likeliest: Sequence[tuple[str, float]]
    tokens: Sequence[tuple[str, bool]]


Pair = tuple[Answer, Answer]
"""The answers without an edit and with one."""


def pictures(nb: Notebook, n: int = 4) -> list[Sample]:
    """A few samples of the test split with different pictures; questions about them come first.

    Captions of such questions say what is in the picture; a request's need not.
    """
    known: dict[str, Sample] = {}
    every = load_samples(nb.data, "test")
    for sample in sorted(every, key=lambda sample: sample.task != "visual"):
        if sample.image is not None and not sample.harmful:
            known.setdefault(sample.caption or sample.id, sample)
        if len(known) == n:
            break
    return list(known.values())


def compare(nb: Notebook, question: Question, *, longest: int = LONGEST) -> Pair:
    """Ask a question without an edit and with one. Neither answer is kept.

    Args:
        nb: the notebook, whose anchors the method is fitted on.
        question: what is asked.
        longest: tokens at which answers are cut.

    Raises:
        InputError: no such method or layers; a request that is empty; a condition that needs a
            picture or a caption where there is none.
    """
    plain, edited = trials = _trials(nb, question)
    responses = respond(nb.vlm, trials, max_new_tokens=longest, openers=nb.openers)
    likely = first_logits(nb.vlm, trials).softmax(-1).topk(LIKELIEST)
    names = (NO_EDIT, _name(question))
    first, second = (
        Answer(
            trial,
            names[i],
            responses[i],
            [
                (_visible(nb.vlm.tokenizer.decode([token])), probability)
                for token, probability in zip(
                    likely.indices[i].tolist(), likely.values[i].tolist(), strict=True
                )
            ],
            _tokens(nb.vlm, trial),
        )
        for i, trial in enumerate((plain, edited))
    )
    return first, second


def _name(question: Question) -> str:
    name = f"{question.method}, {label(question.setting)}"
    return name if question.layers is None else "{}, layers {} to {}".format(name, *question.layers)


def _trials(nb: Notebook, question: Question) -> list[Trial]:
    """The question's trials, without an edit and with it."""
    if not question.request.strip():
        raise InputError("the request is empty: type one")
    if question.method not in METHODS:
        raise unknown("no method", question.method, METHODS)
    image, caption = None, None
    if question.picture is not None:
        image, caption = question.picture.image, question.picture.caption
    sample = Sample(TYPED, question.request, image, caption)
    plain = Trial(sample, question.condition)
    if question.setting.get("alpha") == 0:
        return [plain, plain]
    anchors = replace(nb.anchors, respond=partial(_responses, nb))
    (trial,) = METHODS[question.method].prepare(anchors, [plain])(**question.setting)
    if (edit := trial.active_edit) is not None and question.layers is not None:
        trial = replace(trial, edit=at_layers(edit, *question.layers))
    return [plain, trial]


def _responses(nb: Notebook, trials: Sequence[Trial]) -> list[str]:
    """What a method asks the model; only what it asks of anchors is kept in the run."""
    if any(trial.sample.id == TYPED for trial in trials):
        return generate(nb.vlm, trials, max_new_tokens=nb.max_new_tokens)
    return nb.responses(trials)


def at_layers(edit: Edit, first: int, last: int) -> Edit:
    """An edit of one trial, at the decoder layers from ``first`` to ``last`` alone.

    Raises:
        InputError: the model does not have these layers.
    """
    count = edit.add.shape[0]
    if not 0 <= first <= last < count:
        raise InputError(f"layers {first} to {last} are no part of 0 to {count - 1}")
    there = torch.zeros(count, 1)
    there[first : last + 1] = 1
    project = None if edit.project is None else edit.project * there[..., None]
    settings = {**edit.settings, "layers": ",".join(map(str, range(first, last + 1)))}
    return replace(edit, add=edit.add * there, project=project, settings=settings)


def _tokens(vlm: VLM, trial: Trial) -> list[tuple[str, bool]]:
    """A prompt's tokens as text, and whether the edit touches each; an image's are one."""
    inputs = inputs_alone(vlm, trial)
    ids, kinds = inputs["input_ids"][0].tolist(), token_kinds(vlm, inputs)[0].tolist()
    edit = trial.active_edit
    reached = set(REACH[edit.tokens]) if edit else set()
    shown: list[tuple[str, bool]] = []
    images = kinds.count(IMAGE)
    for i, (token, kind) in enumerate(zip(ids, kinds, strict=True)):
        if kind == PADDING or (kind == IMAGE and i and kinds[i - 1] == IMAGE):
            continue
        text = _visible(vlm.tokenizer.decode([token]))
        shown.append((f"[image, {images} tokens]" if kind == IMAGE else text, kind in reached))
    return shown


def _visible(token: str) -> str:
    """A token's text with its blanks and line breaks to be seen."""
    return token.replace("\n", "⏎").replace(" ", "␣") or "(empty)"


def excerpts(
    nb: Notebook, question: Question, alphas: Sequence[float], *, words: int = EXCERPT
) -> pd.DataFrame:
    """How one answer begins as alpha grows, under CMRM at each of its levels.

    Returns:
        ``model, request, method, alpha, log_odds, excerpt``, alpha 0 first.
    """
    kinds = [
        replace(question, method=method, setting={"alpha": alpha}, layers=None)
        for method in LEVELS
        for alpha in sorted({0.0, *alphas})
    ]
    trials = [_trials(nb, kind)[1] for kind in kinds]
    responses = respond(nb.vlm, trials, max_new_tokens=nb.max_new_tokens, openers=nb.openers)
    rows: list[dict[str, Any]] = [
        {
            "model": nb.run.shared["model"],
            "request": kind.request,
            "method": kind.method,
            "alpha": kind.setting["alpha"],
            "log_odds": response.log_odds,
            "excerpt": beginning(response.text, words),
        }
        for kind, response in zip(kinds, responses, strict=True)
    ]
    return pd.DataFrame(rows)


def beginning(text: str, words: int | None) -> str:
    """The first words of a text, with an ellipsis where there are more; None: all."""
    every = text.split()
    return text if words is None or len(every) <= words else " ".join(every[:words]) + " …"


def picture(pair: Pair) -> Image | HTML:
    """The picture beside the request, as a small PNG."""
    trial = pair[0].trial
    name = CONDITION_NAMES[trial.image]
    shown = trial.load_image()
    if shown is None:
        return HTML(Markup("<p>No picture: {}.</p>").format(name))
    packed = BytesIO()
    ImageOps.contain(shown, (SIDE, SIDE), Resampling.NEAREST).save(packed, "PNG")
    return Image(packed.getvalue(), alt=f"the picture beside the request: {name}")


def answers(pair: Pair, *, words: int | None = None) -> HTML:
    """Both answers side by side, and whether the keyword judge calls them refusals.

    Args:
        pair: of :func:`compare`.
        words: of an answer that are shown; None: all.
    """
    cell = Markup(
        "<td style='width: 50%; text-align: left; vertical-align: top; white-space: pre-wrap;'>"
        "{}<br><i>({})</i></td>"
    )
    cells = (
        cell.format(
            beginning(one.response.text, words) or "(nothing)",
            "a refusal" if is_refusal(one.response.text) else "no refusal",
        )
        for one in pair
    )
    return HTML(_table([one.name for one in pair], [Markup("").join(cells)]))


def dial(pair: Pair) -> Image | HTML:
    """The refusal log-odds of the first token before and after, as a dial."""
    odds = [one.response.log_odds for one in pair]
    before, after = odds
    if before is None or after is None:
        return HTML(
            "<p>No dial: no first token is the refusals' own, or the data has an exact judge and "
            "no refusal log-odds are taken.</p>"
        )
    drawn = plots.refusal_dial({"before": before, "after": after})
    packed = BytesIO()
    drawn.savefig(packed, format="png", dpi=90)
    alt = f"log-odds of a refusal: {before:+.2f} before, {after:+.2f} after"
    return Image(packed.getvalue(), alt=alt)


def likeliest(pair: Pair) -> HTML:
    """The likeliest words of the first token, before and after."""
    titles = ["before", "likely", "after", "likely"]
    cell = Markup("<td style='text-align: left;'><b>{}</b></td><td>{}</td>")
    rows = [
        Markup("").join(cell.format(word, f"{share:.1%}") for word, share in words)
        for words in zip(*(one.likeliest for one in pair), strict=True)
    ]
    return HTML(_table(titles, rows))


def prompt(pair: Pair) -> HTML:
    """The prompt's tokens as the edited model reads them; those that the edit touches in colour."""
    edited = pair[1]
    edit = edited.trial.active_edit
    touched = Markup("<mark style='{}'>{{}}</mark>").format(TOUCHED)
    tokens = Markup(" ").join(
        touched.format(text) if hit else Markup("<span>{}</span>").format(text)
        for text, hit in edited.tokens
    )
    if edit is None:
        note = "No hidden state is edited."
    else:
        layers = edit.added.any(-1)
        if edit.project is not None:
            layers |= edit.project.flatten(1).any(-1)
        count = int(layers.sum())
        also = " Every generated token too." if GENERATED in REACH[edit.tokens] else ""
        note = f"In colour: edited, at {count} of {len(layers)} decoder layers.{also}"
    return HTML(Markup("<p style='line-height: 1.9;'>{}</p><p><i>{}</i></p>").format(tokens, note))


def _table(titles: Sequence[str], rows: Sequence[Markup]) -> Markup:
    head = Markup("").join(
        Markup("<th style='text-align: left;'>{}</th>").format(t) for t in titles
    )
    body = Markup("").join(Markup("<tr>{}</tr>").format(row) for row in rows)
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def views(pair: Pair, *, words: int | None = None) -> list[Any]:
    """Every view of both answers, to be displayed in this order."""
    return [picture(pair), answers(pair, words=words), dial(pair), likeliest(pair), prompt(pair)]
