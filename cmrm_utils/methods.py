"""Methods, each a few lines that make an :class:`Edit` of vectors and a strength, or trials.

CMRM, and what it is compared with. A docstring says where a method comes from, and what is our
choice because its source leaves it open, or because we know the source in part only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cmrm_utils.edits import Edit, Tokens
from cmrm_utils.engine.loops import generate
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM
from cmrm_utils.prompts import CAPTION_FOR_QUERY, HARM_QUERY, SAFETY_PROMPT, spoken
from cmrm_utils.sample import Sample
from cmrm_utils.trials import Trial, grid
from cmrm_utils.vectors import ShiftVectors, described

Layers = Literal["all", "late"] | Iterable[int]
"""Decoder layers to edit, counted from 0; ``late``: from the middle on."""


def CMRM(
    vectors: ShiftVectors,
    alpha: float,
    *,
    layers: Layers = "all",
    tokens: Tokens = "all",
    name: str | None = None,
) -> Edit:
    """Cross-Modality Representation Manipulation: ``h - alpha * v`` at each chosen layer.

    Args:
        vectors: the shift v (arXiv 2410.09047, Eq. 6 with its sign mended); where it was taken at
            heads or MLPs, it is subtracted there.
        alpha: strength; 0 is no edit.
        layers: decoder layers to edit.
        tokens: which tokens (:class:`Edit`).
        name: what tables call it; by default ``CMRM dataset`` or ``CMRM sample``.

    Raises:
        InputError: an alpha that is not finite, or a layer that the vectors do not have.
    """
    name = name or f"CMRM {vectors.level}"
    return _adding(vectors.scaled(-1.0), alpha, layers=layers, tokens=tokens, name=name)


def _adding(
    vectors: ShiftVectors, alpha: float, *, layers: Layers, tokens: Tokens, name: str
) -> Edit:
    """``h + alpha * v`` at each chosen layer."""
    alpha = _finite(alpha)
    chosen = _chosen(layers, vectors.values.shape[-2])
    add = torch.zeros_like(vectors.values)
    add[..., chosen, :] = alpha * vectors.values[..., chosen, :]
    settings = _settings(name, alpha, tokens, layers, chosen)
    return Edit(add, tokens, vectors.sample_ids, settings, place=vectors.place)


def _finite(alpha: float) -> float:
    if not abs(float(alpha)) < float("inf"):
        raise InputError(f"alpha must be a finite number, not {alpha}")
    return float(alpha)


def _chosen(layers: Layers, count: int) -> list[int]:
    if isinstance(layers, str):
        return list(range(count // 2 if layers == "late" else 0, count))
    chosen = sorted(set(layers))
    if outside := [layer for layer in chosen if not 0 <= layer < count]:
        raise InputError(f"layers {outside} are outside 0 to {count - 1}")
    return chosen


def _settings(
    name: str, alpha: float, tokens: Tokens, layers: Layers, chosen: Sequence[int]
) -> dict[str, str | float]:
    return {
        "method": name,
        "alpha": alpha,
        "tokens": tokens,
        "layers": "all" if layers == "all" else ",".join(map(str, chosen)),
    }


def ways(vectors: ShiftVectors, alphas: Iterable[float]) -> list[Edit]:
    """The shift as published, and each layer's own share of it; on all tokens, and the last on."""
    variants: list[tuple[str, ShiftVectors, Tokens]] = [
        ("v, all tokens", vectors, "all"),
        ("v, from the last token on", vectors, "last"),
        ("u, all tokens", vectors.increments(), "all"),
        ("u, from the last token on", vectors.increments(), "last"),
    ]
    strengths = list(alphas)
    return [CMRM(v, a, tokens=t, name=name) for name, v, t in variants for a in strengths]


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


def ShiftDC(
    shift: ShiftVectors,
    safety: ShiftVectors,
    strength: float = 1.0,
    *,
    layers: Layers = "late",
    tokens: Tokens = "last prompt",
) -> Edit:
    """ShiftDC (arXiv 2502.13095): take back the part of the modality shift that bears on safety.

    ``h - (m.s / s.s) s``, m being the sample's own shift, s the safety direction; only the line
    that s lies on matters, neither its sign nor its length.

    Our choices: m is read once, in a pass without an edit, and taken off at every chosen layer,
    as CMRM's v is, though what a layer takes off reaches those above; the layers from the middle
    on ("from the middle on" is said to be best, with no number). A later version of the method
    edits every generated token too: ``tokens="last"``.

    Args:
        shift: m, of the samples to be edited (:func:`cmrm_utils.vectors.caption_shift`).
        safety: s (:func:`cmrm_utils.vectors.safety_direction`).
        strength: 1 in the paper.
        layers: decoder layers to edit.
        tokens: which tokens.
    """
    return CMRM(shift.only(safety), strength, layers=layers, tokens=tokens, name="ShiftDC")


def VLMGuard(
    directions: ShiftVectors,
    readings: ShiftVectors,
    alpha: float,
    *,
    ungated: Literal["projected", "left"] = "projected",
    layers: Layers = "all",
    tokens: Tokens = "last",
) -> Edit:
    """VLM-Guard (arXiv 2502.10486): put the safety part of the query's text state in the state's.

    ``h - V V'h``, and where the gate is on ``+ alpha V V'q``: q is the state of the same query
    without its image, V what harmful and benign text differ along. The gate is on where q
    projects positively on the first direction, which points to harm. With ``alpha`` 0 nothing is
    put back: what speaks for a refusal is taken out, and what speaks against it.

    Known from descriptions of the paper, not from its code. They leave open what becomes of a
    state whose gate is off: projected, with nothing put back, or left alone; both are here. Our
    choices: the gate is read layer by layer, with 0 as its threshold; how many directions, alpha,
    all layers, and the tokens from the last of the prompt on.

    Args:
        directions: V (:func:`cmrm_utils.vectors.difference_directions`).
        readings: q, of the samples to be edited (:func:`cmrm_utils.vectors.text_states`).
        alpha: strength of what is put back.
        ungated: what becomes of a state whose gate is off.
        layers: decoder layers to edit.
        tokens: which tokens.
    """
    alpha = _finite(alpha)
    chosen = _chosen(layers, directions.values.shape[-2])
    along = torch.einsum("slh,mlh->slm", readings.values, directions.values)
    own = torch.einsum("slm,mlh->slh", along, directions.values)
    on = along[..., :1] > 0
    add, project = torch.zeros_like(own), torch.zeros_like(directions.values)
    add[:, chosen] = (alpha * own * on)[:, chosen]
    project[:, chosen] = directions.values[:, chosen]
    project = project.transpose(0, 1)  # layers, directions, hidden
    if ungated == "left":
        project = project * on[..., None]
    settings = {**_settings("VLM-Guard", alpha, tokens, layers, chosen), "ungated": ungated}
    return Edit(add, tokens, readings.sample_ids, settings, project.contiguous())


def ReGap(
    drift: ShiftVectors,
    refusal: ShiftVectors,
    regained: Mapping[str, float],
    alpha: float,
    *,
    first: float,
    layers: Layers = "all",
    tokens: Tokens = "last",
) -> Edit:
    """Inspired by ReGap (arXiv 2605.18104), of which we know the abstract alone: not ReGap itself.

    ``h - first * v + alpha * w * r``: a correction against the modality drift v, the same for all
    samples, and then as much of the refusal direction r as the sample's state, so corrected,
    looks harmful (w, from 0 to 1). The abstract says that countering the drift makes harm
    separable again, and that harm perceived anew sets each input's strength; the equation, w, and
    all defaults are ours.

    Args:
        drift: v (:func:`cmrm_utils.vectors.extract_shift`).
        refusal: r (:func:`cmrm_utils.vectors.refusal_direction`).
        regained: w by sample id (:func:`cmrm_utils.vectors.regained`, under the first correction,
            ``CMRM(drift, first, layers=layers, tokens=tokens)``).
        alpha: strength at w = 1.
        first: strength of the first correction.
        layers: decoder layers to edit.
        tokens: which tokens.
    """
    weights = torch.tensor(list(regained.values()))[:, None, None]
    values = _finite(alpha) * weights * refusal.values - _finite(first) * drift.values
    every = ShiftVectors(values, tuple(regained))
    edit = _adding(every, 1.0, layers=layers, tokens=tokens, name="ReGap-inspired")
    return replace(edit, settings={**edit.settings, "alpha": float(alpha), "first": float(first)})


def refusal_addition(refusal: ShiftVectors, layer: int, strength: float = 1.0) -> Edit:
    """Add the refusal direction at one layer, all positions and steps (arXiv 2406.11717).

    The paper adds it, not normalised, at the input of a block, and takes it there. Ours is the
    output of a decoder layer, which is the same place by another name: ``layer`` is the block
    before. The paper's choice of layer, on validation, is among the first 80%.

    Args:
        refusal: harmful minus benign (:func:`cmrm_utils.vectors.refusal_direction`).
        layer: at whose output.
        strength: 1 in the paper.
    """
    return _adding(refusal, strength, layers=[layer], tokens="all", name="refusal addition")


def safety_prompt(
    samples: Iterable[Sample], *, image: str = "own", text: str = SAFETY_PROMPT
) -> list[Trial]:
    """Trials whose prompts begin with a static safety prompt; no state is edited.

    What AdaShield-S does (arXiv 2403.09513), in words of our own.
    """
    trials = grid(samples, images=[image], edits=[_only_named("safety prompt")])
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
    named = _only_named("ECSO")
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


def gated(edit: Edit, on: Mapping[str, bool], *, name: str) -> Edit:
    """An edit for those samples whose gate is on, and nothing for the others.

    Args:
        edit: of the dataset level, or one that has rows for all the samples.
        on: whether the gate is on, by sample id.
        name: what tables call it.
    """
    shares = torch.tensor(list(on.values()), dtype=torch.float32)
    rows = [edit.row(sample) for sample in on]
    add = torch.stack([row.add for row in rows]) * shares[:, None, None]
    project = None
    if edit.project is not None:
        own = [row.project for row in rows if row.project is not None]
        project = torch.stack(own) * shares[:, None, None, None]
    settings = {**edit.settings, "method": name}
    return replace(edit, add=add, sample_ids=tuple(on), settings=settings, project=project)


def _only_named(method: str) -> Edit:
    """No edit, under a method's name: tables then show what a changed prompt belongs to."""
    return Edit(torch.zeros(1, 1), settings={"method": method})


def dose(edit: Edit, states: Tensor) -> Tensor:
    """``|alpha v| / |h|`` per layer: how large what an edit adds is beside what it is added to.

    What it projects out is not counted.

    Args:
        edit: an edit; of a sample-level one the mean norm counts.
        states: hidden states ``(trials, layers, hidden)``; their mean norm counts.

    Returns:
        float32 ``(layers,)``.
    """
    size = edit.add.norm(dim=-1)
    return (size if size.ndim == 1 else size.mean(0)) / states.norm(dim=-1).mean(0)
