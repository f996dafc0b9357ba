"""What an edit does to the first response token: log-odds of a refusal, and sight.

No response is generated: a trial is one forward pass, so that much can be tried.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrm_utils.engine.batch import log_odds
from cmrm_utils.engine.loops import first_logits, progress_bar
from cmrm_utils.judges.openers import find_openers
from cmrm_utils.models import VLM
from cmrm_utils.results.intervals import paired_difference
from cmrm_utils.results.rates import UNSEEN
from cmrm_utils.results.responses import table
from cmrm_utils.sample import Sample
from cmrm_utils.studies.frontier import TRIALS
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial

MEASURES = {"harmful refused": "harmful", "benign refused": "benign", "sight": "visual"}
"""What is measured, each in nats, and the task of its samples.

The refusal log-odds of harmful requests, those of benign ones (their twins where there are any),
and the log-probability of the first token that the unedited model answers a visual question with.
"""

KEPT = "first token kept"
"""The log-probability of the first token without an edit, of all samples alike.

It is the measure where there is no other: no refusal log-odds and no visual questions.
"""


@dataclass(eq=False)
class FirstTokens:
    """Samples of a split, and what their first response tokens are without an edit.

    Args:
        nb: the notebook.
        n: samples of each kind of request, and twice as many visual questions; None: all.
        split: ``validation`` or ``test``.
        measures: of :data:`MEASURES`; without refusal log-odds, *sight* alone is measured, and
            :data:`KEPT` where the samples allow none of them.
    """

    nb: Notebook
    n: int | None
    split: str = "test"
    measures: Sequence[str] = tuple(MEASURES)

    def __post_init__(self) -> None:
        tasks = {trial.sample.task for trial in self._every}
        there = ("harmful", "benign", "visual") if self.openers else ("visual",)
        self.measures = [m for m in self.measures if MEASURES.get(m) in tasks.intersection(there)]
        self.measures = self.measures or [KEPT]

    @cached_property
    def _every(self) -> list[Trial]:
        """Requests, then visual questions, each with its own image and without an edit."""
        requests = beside_twins(self.nb.samples(self.split, self.n, "harmful", "benign"))
        twice = None if self.n is None else 2 * self.n
        questions = [s for s in self.nb.questions(self.split, twice) if s.task == "visual"]
        return self.nb.plainly([*(s for s in requests if s.kind != UNSEEN), *questions])

    @cached_property
    def trials(self) -> list[Trial]:
        """The trials of the measures, without an edit."""
        tasks = [MEASURES.get(measure) for measure in self.measures]
        return [t for t in self._every if KEPT in self.measures or t.sample.task in tasks]

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

    def changes(
        self, tried: Sequence[Sequence[Trial]], vlm: VLM | None = None
    ) -> list[list[dict[str, Any]]]:
        """What each list changes.

        Args:
            tried: :attr:`trials` under one edit, then under another, and so on.
            vlm: another model with the same tokens that responds; None for the notebook's own.

        Returns:
            For each list a row a measure, ``measure, change, low, high, n``: the mean change in
            nats, paired on the same samples, with a 95% interval that draws topics whole.
        """
        about = table(self.trials, [""] * len(self.trials))
        tokens, start = self._start
        step = max(1, TRIALS // len(self.trials))  # together, so that beginnings are shared
        rows: list[list[dict[str, Any]]] = []
        with progress_bar(len(tried), "settings", True) as bar:
            for at in range(0, len(tried), step):
                some = tried[at : at + step]
                logits = first_logits(vlm or self.nb.vlm, [t for each in some for t in each])
                for each in logits.unflatten(0, (len(some), -1)):
                    rows.append(
                        list(_changes(self.measures, about, start, self._scores(each, tokens)))
                    )
                bar.update(len(some))
        return rows


def _changes(
    names: Sequence[str], about: pd.DataFrame, start: pd.Series, scores: pd.Series
) -> Iterator[dict[str, Any]]:
    """A row for each measure."""
    for measure in names:
        these = about if measure == KEPT else about[about["task"] == MEASURES[measure]]
        yield change_row(measure, these, start[these.index], scores[these.index])


def change_row(
    measure: str, about: pd.DataFrame, before: pd.Series, after: pd.Series
) -> dict[str, Any]:
    """``measure, change, low, high, n``: the mean change, with an interval that draws topics whole.

    Args:
        measure: its name.
        about: the samples (:func:`cmrm_utils.results.responses.table`).
        before: their values without an edit, by the index of ``about``.
        after: those with it.
    """
    like = {"groups": about["group"], "strata": about["kind"]}
    change, low, high = paired_difference(before, after, **like)
    return {"measure": measure, "change": change, "low": low, "high": high, "n": len(about)}


def beside_twins(requests: Sequence[Sample]) -> list[Sample]:
    """Harmful requests and their harmless twins; all benign requests where there are no twins."""
    twins = [s for s in requests if s.harmful or "twin" in str(s.kind)]
    return twins if any(not s.harmful for s in twins) else list(requests)
