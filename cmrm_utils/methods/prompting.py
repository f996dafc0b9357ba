"""Methods that change the prompt: a safety prompt, ECSO."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cmrm_utils.engine.loops import generate
from cmrm_utils.methods.base import only_named
from cmrm_utils.models import VLM
from cmrm_utils.prompts import CAPTION_FOR_QUERY, CAPTION_QUERY, HARM_QUERY, SAFETY_PROMPT, spoken
from cmrm_utils.sample import Sample
from cmrm_utils.trials import Trial, grid


def safety_prompt(
    samples: Iterable[Sample], *, image: str = "own", text: str = SAFETY_PROMPT
) -> list[Trial]:
    """Trials whose prompts begin with a static safety prompt; no state is edited.

    What AdaShield-S does (arXiv 2403.09513), in words of our own.
    """
    trials = grid(samples, images=[image], edits=[only_named("safety prompt")])
    return [replace(trial, prompt=f"{text}\n{trial.text}") for trial in trials]


def ECSO(
    vlm: VLM, samples: Sequence[Sample], *, max_new_tokens: int, out: Path | None = None
) -> list[Trial]:
    """Eyes Closed, Safety On (arXiv 2403.09572): the model judges its answer, and may look away.

    Three passes of ordinary trials: the model answers; it is asked whether its answer could do
    harm, the image before it; where it says yes, it tells the image in words, the request in
    view. The trials returned give the method's responses: with the caption in the image's place
    for those, and for the others as they were, whose responses are known already.

    All prompts are in our words, and "yes" at the beginning of its judgement counts as one. A
    model that cannot judge itself (the bundled organisms were never taught to) is not changed.

    Args:
        vlm: the model.
        samples: those without an image are left out: there is nothing to look away from.
        max_new_tokens: for each pass.
        out: where all responses are kept (:func:`cmrm_utils.engine.loops.generate`).
    """
    named = only_named("ECSO")
    first = grid(samples, edits=[named])
    answers = generate(vlm, first, max_new_tokens=max_new_tokens, out=out)
    asked = [
        Trial(t.sample, prompt=HARM_QUERY.format(query=t.text, answer=spoken(answer)))
        for t, answer in zip(first, answers, strict=True)
    ]
    verdicts = generate(vlm, asked, max_new_tokens=max_new_tokens, out=out)
    harm = [spoken(verdict).strip().lower().startswith("yes") for verdict in verdicts]
    unsafe = [trial.sample for trial, yes in zip(first, harm, strict=True) if yes]
    told = described(vlm, unsafe, ask=CAPTION_FOR_QUERY, max_new_tokens=max_new_tokens, out=out)
    closed = {sample.id: Trial(sample, "caption", named) for sample in told}
    return [closed.get(trial.sample.id, trial) for trial in first]


def described(
    vlm: VLM,
    samples: Sequence[Sample],
    *,
    ask: str = CAPTION_QUERY,
    max_new_tokens: int = 64,
    out: Path | None = None,
) -> list[Sample]:
    """The samples with the model's own captions of their images in the place of theirs.

    Args:
        vlm: the model.
        samples: those without an image stay as they are.
        ask: what the model is asked; ``{query}`` in it stands for the sample's own prompt.
        max_new_tokens: where captions are cut.
        out: for :func:`.loops.generate`: captions are kept there like any response.
    """
    seen = [sample for sample in samples if sample.image is not None]
    trials = [Trial(s, prompt=ask.replace("{query}", s.prompt)) for s in seen]
    captions = generate(vlm, trials, max_new_tokens=max_new_tokens, out=out)
    texts = iter(captions)
    return [s if s.image is None else replace(s, caption=next(texts)) for s in samples]
