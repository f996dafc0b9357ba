"""A gate: whether a state looks harmful, so that an edit is made only where it is called for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import normalize

from cmrm_utils.edits import Edit
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM

How = Literal["mean", "probe", "neighbours"]
"""How a gate is fitted at one layer."""


Score = Callable[[Tensor], Tensor]
"""From states ``(n, layers, hidden)`` to a number each, above 0 where they look harmful."""


NEIGHBOURS = 5
"""Known states that decide by majority. The number is ours."""


REFUSAL_WORDS = (
    "sorry apologize cannot can't unable won't refuse decline illegal unlawful harmful harm "
    "dangerous unsafe unethical wrong inappropriate against never not"
).split()
"""Words that refusals hold, for :func:`refusal_lens`; the choice is ours."""


@dataclass(frozen=True, eq=False)
class Gate:
    """Tells harmful states from the rest.

    Attributes:
        layers: whose states it reads.
        score: above 0 where the gate is on.
    """

    layers: tuple[int, ...]
    score: Score

    def on(self, states: Tensor) -> list[bool]:
        """Whether it is on for each of the states ``(n, layers, hidden)``."""
        return (self.score(states) > 0).tolist()


def fit_gate(harmful: Tensor, harmless: Tensor, how: How = "mean") -> Gate:
    """A gate that tells two sets of states ``(n, layers, hidden)`` apart, at one layer.

    Fitted at every layer on every other state; the layer is the one at which the states left out
    are told apart best (the mean of the two sides' shares, and of equal ones the lowest layer),
    and there it is fitted to all.

    Args:
        harmful: states for which it is to be on.
        harmless: states for which it is to be off.
        how: ``mean``: along the difference of the means, half-way between them; ``probe``: a
            logistic regression on standardised states, both sides weighing alike;
            ``neighbours``: the majority of the :data:`NEIGHBOURS` known states of the largest
            cosine, taken from equally many of each side.

    Raises:
        InputError: fewer than two states on a side.
    """
    if min(len(harmful), len(harmless)) < 2:
        raise InputError("a gate is fitted to two states of each side at least")
    fit = {"mean": _half_way, "probe": _probe, "neighbours": _neighbours}[how]

    def at(layer: int, bad: Tensor, good: Tensor) -> Gate:
        score = fit(bad[:, layer], good[:, layer])
        return Gate((layer,), lambda states: score(states[:, layer]))

    def told_apart(layer: int) -> float:
        gate = at(layer, harmful[::2], harmless[::2])
        right, wrong = gate.on(harmful[1::2]), gate.on(harmless[1::2])
        return float(np.mean(right) + 1 - np.mean(wrong))

    return at(max(range(harmful.shape[1]), key=told_apart), harmful, harmless)


def _half_way(harmful: Tensor, harmless: Tensor) -> Score:
    high, low = harmful.mean(0), harmless.mean(0)
    direction = normalize(high - low, dim=0)
    return lambda states: states @ direction - direction @ (high + low) / 2


def _probe(harmful: Tensor, harmless: Tensor) -> Score:
    probe = harm_probe(harmful, harmless)
    return lambda states: torch.from_numpy(probe.decision_function(states.double().numpy()))


def harm_probe(harmful: Tensor, harmless: Tensor) -> Pipeline:
    """A logistic regression on standardised states ``(n, hidden)``, both sides weighing alike."""
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced")
    )
    labels = [1] * len(harmful) + [0] * len(harmless)
    return probe.fit(torch.cat([harmful, harmless]).double().numpy(), labels)


def _neighbours(harmful: Tensor, harmless: Tensor) -> Score:
    few = min(len(harmful), len(harmless))
    known = torch.cat([harmful[:few], harmless[:few]]).numpy()
    count = min(NEIGHBOURS, 2 * few - 1) // 2 * 2 + 1  # an odd number, so that none is undecided
    judge = KNeighborsClassifier(count, metric="cosine").fit(known, [1] * few + [0] * few)
    return lambda states: torch.from_numpy(judge.predict_proba(states.numpy())[:, 1]) - 0.5


def refusal_lens(vlm: VLM) -> Callable[[Tensor], Tensor]:
    """HiddenDetect's reading of a state: how much the logit lens sees of :data:`REFUSAL_WORDS`.

    The cosine, at each layer, of the logits that the state would give if it were the last one
    (final norm, LM head) with a vector that is 1 at the words' first tokens and 0 elsewhere.

    Returns:
        A function from states ``(n, layers, hidden)`` to cosines ``(n, layers)``.

    Raises:
        InputError: the model's final norm is not found.
    """
    tokens = [vlm.tokenizer(f" {word}", add_special_tokens=False) for word in REFUSAL_WORDS]
    ids = torch.tensor(sorted({each["input_ids"][0] for each in tokens}))
    norm, head = _final_norm(vlm), vlm.model.get_output_embeddings()

    @torch.inference_mode()
    def cosines(states: Tensor) -> Tensor:
        rows = []
        for one in states:  # a sample at a time: the vocabulary is wide
            logits = head(norm(one.to(vlm.device, vlm.model.dtype))).float().cpu()
            rows.append(logits[:, ids].sum(-1) / (logits.norm(dim=-1) * len(ids) ** 0.5))
        return torch.stack(rows)

    return cosines


def _final_norm(vlm: VLM) -> nn.Module:
    for module in vlm.model.modules():
        layers, norm = getattr(module, "layers", None), getattr(module, "norm", None)
        if isinstance(layers, nn.ModuleList) and vlm.layers[0] in [*layers] and norm is not None:
            return norm
    raise InputError(f"{vlm.name}: its final norm is not found beside its decoder layers")


def fit_detector(
    harmful: Tensor, harmless: Tensor, lens: Callable[[Tensor], Tensor], *, count: int = 12
) -> Gate:
    """HiddenDetect (arXiv 2502.14744): a gate without training.

    It is on where the area under the lens's cosines is large, over the layers where harmful
    examples exceed harmless ones by more than they do at the last layer (from the first such layer
    to the last). The threshold half-way between the examples' mean areas is ours.

    Args:
        harmful: example states ``(n, layers, hidden)``.
        harmless: likewise.
        lens: of :func:`refusal_lens`.
        count: examples of each kind that are used.

    Raises:
        InputError: no examples of a kind.
    """
    if not len(harmful) or not len(harmless):
        raise InputError("HiddenDetect needs harmful and harmless examples")
    bad, good = lens(harmful[:count]), lens(harmless[:count])
    rise = bad.mean(0) - good.mean(0)
    above = (rise > rise[-1]).nonzero().flatten().tolist()
    layers = tuple(range(above[0], above[-1] + 1)) if above else tuple(range(len(rise)))

    def area(cosines: Tensor) -> Tensor:
        part = cosines[:, list(layers)]
        return torch.trapezoid(part) if len(layers) > 1 else part[:, 0]

    threshold = (area(bad).mean() + area(good).mean()) / 2
    return Gate(layers, lambda states: area(lens(states)) - threshold)


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
