"""Notebook 08: which part of the shift matters, told at the first response token.

The full edit stands beside edits that differ from it in one thing. No response is generated: a
trial is one forward pass, so that every head of a model can be tried.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrm_utils.edits import Edit, Place
from cmrm_utils.engine.batch import log_odds
from cmrm_utils.engine.loops import first_logits, progress_bar
from cmrm_utils.errors import InputError
from cmrm_utils.judges.openers import find_openers
from cmrm_utils.methods.base import edited
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.results.intervals import paired_difference
from cmrm_utils.results.rates import UNSEEN
from cmrm_utils.studies.frontier import TRIALS
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.variants import Head, Variant, head_variants, rank_variants
from cmrm_utils.trials import Trial, table
from cmrm_utils.vectors import ShiftVectors, principal_directions

MEASURES = {"harmful refused": "harmful", "benign refused": "benign", "sight": "visual"}
"""What a variant changes, each in nats, and the task of its samples.

The refusal log-odds of harmful requests, those of benign ones (their twins where there are any),
and the log-probability of the first token that the unedited model answers a visual question with.
"""


@dataclass(eq=False)
class Ablations:
    """Variants of dataset-level CMRM on samples of a split, beside no edit.

    Args:
        nb: the notebook.
        n: samples of each kind of request, and twice as many visual questions; None: all.
        split: ``validation`` or ``test``.
        measures: of :data:`MEASURES`; without refusal log-odds, *sight* alone is measured.

    Raises:
        InputError: there is nothing to measure.
    """

    nb: Notebook
    n: int | None
    split: str = "test"
    measures: Sequence[str] = tuple(MEASURES)

    def __post_init__(self) -> None:
        tasks = {trial.sample.task for trial in self._every}
        there = ("harmful", "benign", "visual") if self.openers else ("visual",)
        self.measures = [m for m in self.measures if MEASURES[m] in tasks.intersection(there)]
        if not self.measures:
            raise InputError(
                f"{self.nb.vlm.name} has no refusal log-odds, and {self.nb.data} no visual "
                "questions: an ablation has nothing to measure"
            )

    def vectors(self, place: Place) -> ShiftVectors:
        """The harmful anchors' shift at a place (:data:`cmrm_utils.edits.PLACES`)."""
        name = "harmful_blank" if place == "layer" else f"harmful_blank_{place}"
        return self.nb.shift(self.nb.anchors.harmful, name, place=place)

    @cached_property
    def _every(self) -> list[Trial]:
        """Requests, then visual questions, each with its own image and without an edit."""
        requests = self.nb.samples(self.split, self.n, "harmful", "benign")
        if any("twin" in str(sample.kind) for sample in requests):
            requests = [s for s in requests if s.harmful or "twin" in str(s.kind)]
        twice = None if self.n is None else 2 * self.n
        questions = [s for s in self.nb.questions(self.split, twice) if s.task == "visual"]
        return self.nb.plainly([*(s for s in requests if s.kind != UNSEEN), *questions])

    @cached_property
    def trials(self) -> list[Trial]:
        """The trials of the measures, without an edit."""
        tasks = [MEASURES[measure] for measure in self.measures]
        return [trial for trial in self._every if trial.sample.task in tasks]

    @cached_property
    def openers(self) -> tuple[int, ...]:
        """Ids of the tokens that open refusals; in the invented world its exact judge tells."""
        if self.nb.openers or not self.nb.world:
            return self.nb.openers
        anchors = self.nb.anchors
        trials = [Trial(sample, "none") for sample in (*anchors.harmful, *anchors.benign)]
        refused = self.nb.ask(trials)["outcome"] == "refused"
        return find_openers(self.nb.answers(trials), list(refused))

    @cached_property
    def _start(self) -> tuple[Tensor, pd.Series]:
        """Of each trial without an edit: the likeliest first token, and its score."""
        logits = first_logits(self.nb.vlm, self.trials)
        tokens = logits.argmax(-1)
        return tokens, self._scores(logits, tokens)

    def _scores(self, logits: Tensor, tokens: Tensor) -> pd.Series:
        """By trial: a request's refusal log-odds, a question's log-probability of its token."""
        likely = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        if not self.openers:
            return pd.Series(likely.numpy())
        odds = log_odds(logits, self.openers)
        return pd.Series(torch.where(torch.tensor(self._asked == "visual"), likely, odds).numpy())

    @cached_property
    def _asked(self) -> NDArray[np.str_]:
        return np.array([trial.sample.task for trial in self.trials])

    def effects(self, variants: Sequence[Variant], alpha: float) -> pd.DataFrame:
        """What each variant changes, at one alpha.

        Args:
            variants: of one section, which have the same labels.
            alpha: of all of them.

        Returns:
            ``variant``, its labels, ``alpha, measure, change, low, high, n``: the mean change in
            nats of each measure, paired on the same samples, with a 95% interval that draws topics
            whole.
        """
        about = table(self.trials, [""] * len(self.trials))
        tokens, start = self._start
        step = max(1, TRIALS // len(self.trials))  # together, so that beginnings are shared
        rows: list[dict[str, Any]] = []
        with progress_bar(len(variants), "variants", True) as bar:
            for at in range(0, len(variants), step):
                some = variants[at : at + step]
                tried = [t for v in some for t in edited(self.trials, self.edit(v, alpha))]
                each = first_logits(self.nb.vlm, tried).unflatten(0, (len(some), -1))
                for variant, logits in zip(some, each, strict=True):
                    changes = _changes(about, start, self._scores(logits, tokens))
                    rows += (
                        {"variant": variant.name, **variant.labels, "alpha": alpha, **row}
                        for row in changes
                    )
                bar.update(len(some))
        return pd.DataFrame(rows)

    def edit(self, variant: Variant, alpha: float) -> Edit:
        """A variant as an edit."""
        part = variant.part(self.vectors(variant.place))
        return CMRM(part, alpha, layers=variant.layers, tokens=variant.tokens, name=variant.name)

    def head_ranking(self, n: int | None) -> pd.DataFrame:
        """What undoing each head's shift alone (alpha 1) does to the first measure there is.

        Args:
            n: validation samples of each kind.

        Returns:
            ``layer, head, change, low, high, norm``: the mean rise in nats, the greatest first,
            and the length of the head's shift.
        """
        vlm, vectors = self.nb.vlm, self.vectors("heads")
        each = vlm.width("heads") // vlm.head_size
        heads = [(layer, head) for layer in range(len(vlm.layers)) for head in range(each)]
        first = Ablations(self.nb, n, "validation", self.measures[:1])
        rows = first.effects(head_variants(vlm, heads), 1.0)
        sizes = vectors.values.unflatten(-1, (each, vlm.head_size)).norm(dim=-1)
        columns = ["layer", "head", "change", "low", "high", "norm"]
        rows = rows.assign(norm=sizes.flatten().tolist())[columns]
        return rows.sort_values("change", ascending=False, ignore_index=True)

    def ranks(self, counts: Iterable[int]) -> list[Variant]:
        """:func:`.variants.rank_variants` of the anchors' components, of as many as there are."""
        anchors = self.nb.anchors.harmful
        most = min(len(anchors), self.nb.vlm.hidden_size)
        few = [count for count in counts if count <= most]
        return rank_variants(principal_directions(self.nb.vlm, anchors, max(few)), few)


def ordered(ranking: pd.DataFrame) -> list[Head]:
    """The heads of :meth:`Ablations.head_ranking`, the greatest effect first."""
    return list(zip(ranking["layer"].tolist(), ranking["head"].tolist(), strict=True))


def _changes(about: pd.DataFrame, start: pd.Series, scores: pd.Series) -> Iterator[dict[str, Any]]:
    """A row for each measure that there are samples of."""
    for measure, task in MEASURES.items():
        these = about[about["task"] == task]
        if these.empty:
            continue  # not measured here
        like = {"groups": these["group"], "strata": these["kind"]}
        where = these.index
        change, low, high = paired_difference(start[where], scores[where], **like)
        yield {"measure": measure, "change": change, "low": low, "high": high, "n": len(these)}
