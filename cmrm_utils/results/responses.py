"""Responses as a table: a row for each trial, which judges and rates read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from cmrm_utils.trials import Trial

_COLUMNS = (
    "trial sample kind task group world image method alpha query request answer choices response"
).split()


def table(trials: Sequence["Trial"], responses: Sequence[str]) -> pd.DataFrame:
    """One row per trial, with a column for every setting.

    Columns are ``trial, sample, kind, task, group, world, image, query, request, answer, choices,
    response`` and the edits' settings; without an edit, ``method`` is ``none`` and ``alpha`` 0.0.
    Judges read ``request``: the query, or the words of what it asks for. ``world`` tells whether
    the organism's exact judge knows the sample.

    Raises:
        ValueError: the numbers of trials and responses differ.
    """
    if len(trials) != len(responses):
        raise ValueError(f"{len(trials)} trials but {len(responses)} responses")
    rows = [_row(*pair) for pair in zip(trials, responses, strict=True)]
    return pd.DataFrame(rows, columns=None if rows else _COLUMNS)


def _row(trial: "Trial", response: str) -> dict[str, Any]:
    sample = trial.sample
    return {
        "trial": trial.id,
        "sample": sample.id,
        "kind": sample.kind,
        "task": sample.task,
        "group": sample.group or sample.id,
        "world": sample.world,
        "image": trial.image,
        "method": "none",
        "alpha": 0.0,
        **(trial.edit.settings if trial.edit else {}),
        "query": trial.text,
        "request": sample.request or trial.text,
        "answer": sample.answer,
        "choices": sample.choices,
        "response": response,
    }
