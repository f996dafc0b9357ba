"""Judges by name, with or without a model, on a table of responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cmrm_utils.errors import InputError
from cmrm_utils.judges.agreement import judge_agreement
from cmrm_utils.judges.model_judges import judge_responses, load_judge
from cmrm_utils.judges.outcomes import TEXT_JUDGES
from cmrm_utils.results.rates import carried_out, rates

_FIELDS = {"judge", "model", "prompt"}


@dataclass(frozen=True)
class NamedJudge:
    """A judge that a user names, with the settings of that judge.

    Attributes:
        name: a key of :data:`~cmrm_utils.judges.outcomes.TEXT_JUDGES` or of
            :data:`~cmrm_utils.judges.model_judges.JUDGES`.
        source: for a model judge, a folder or hub id that replaces its own.
        prompt: for a model judge, a text that replaces its own prompt.
    """

    name: str
    source: str | None = None
    prompt: str | None = None

    @classmethod
    def parse(cls, item: str | Mapping[str, Any]) -> "NamedJudge":
        """Read ``NAME``, ``NAME=MODEL``, or ``{judge: NAME, model: MODEL, prompt: FILE}``.

        Raises:
            InputError: it has none of these forms, or the prompt's file cannot be read.
        """
        if isinstance(item, str):
            name, _, source = item.partition("=")
            return cls(name, source or None)
        if not isinstance(item, Mapping) or not {"judge"} <= set(item) <= _FIELDS:
            raise InputError(
                f"judge {item!r}: write NAME, NAME=MODEL, or {{judge: NAME, model: MODEL, "
                "prompt: FILE}"
            )
        prompt = item.get("prompt")
        return cls(item["judge"], item.get("model"), read_prompt(prompt) if prompt else None)


def read_prompt(path: str | Path) -> str:
    """A judge's prompt from a text file.

    Raises:
        InputError: no file there is readable text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"prompt of a judge: no readable text file at {path}") from error


def verdicts(
    rows: pd.DataFrame, judge: NamedJudge, *, folder: Path
) -> tuple[pd.DataFrame, str | None]:
    """A judge's verdicts on responses.

    Args:
        rows: ``response`` and ``query``; perhaps ``request``, which is then read in place of the
            query; perhaps ``task``.
        judge: who judges.
        folder: the folder where a model judge's verdicts are stored and resumed from.

    Returns:
        The rows that it can judge, with ``verdict`` and, from model judges, ``score`` and ``said``
        (judges of harm leave out benign requests). Then the one outcome that a judge of two
        verdicts detects, or None for a judge of three outcomes.

    Raises:
        InputError: no such judge or model; ``folder`` has verdicts of another one; nothing to
            judge.
    """
    read = "request" if "request" in rows else "query"
    detects = None
    if judge.name == "exact":
        if "exact" not in rows:  # ordinary English can read like a request of the organism's world
            raise InputError(
                "judge exact: these responses do not say whether their requests are of the "
                "organism's world; give the folder of a run"
            )
        table = rows.assign(verdict=rows["exact"].fillna("unknown"))
    elif judge.name in TEXT_JUDGES:
        outcomes = map(TEXT_JUDGES[judge.name], rows[read], rows["response"])
        table = rows.assign(verdict=[outcome or "unknown" for outcome in outcomes])
    else:
        model = load_judge(judge.name, judge.source, prompt=judge.prompt)
        detects = model.form.detects
        if model.form.harmful_only and "task" in rows:
            rows = rows[rows["task"] != "benign"]
        queries, responses = list(rows[read]), list(rows["response"])
        out = folder / f"{judge.name}.jsonl"
        results = judge_responses(model, queries, responses, out=out, progress=True)
        table = rows.assign(
            verdict=[verdict.label for verdict in results],
            score=[verdict.score for verdict in results],
            said=[verdict.said for verdict in results],
        )
    if table.empty:
        raise InputError(f"judge {judge.name}: there is no response that it could judge")
    return table, detects


def panel(
    rows: pd.DataFrame, judges: Sequence[NamedJudge], standard: str, *, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Several judges on the same responses.

    Counted is what a judge calls complied; for a judge of refusals, whatever is no refusal.
    ``unknown`` counts on neither side.

    Args:
        rows: judged trials with ``setting``, harmful and benign requests only.
        judges: who judges, at least one.
        standard: the column of outcomes against which the judges are held.
        folder: as for :func:`verdicts`.

    Returns:
        Every verdict (``judge, trial, verdict`` and, from model judges, ``score, said``); agreement
        with the standard, one row per judge (:func:`.judge_agreement`); rates of harmful requests
        by ``judge``, ``measure`` (``not refused``, or :func:`.carried_out`) and ``setting``.
    """
    every, agreed, counted = [], [], []
    for judge in judges:
        table, detects = verdicts(rows, judge, folder=folder)
        table = table.assign(judge=judge.name)
        every.append(table)
        agreement = judge_agreement(table[standard], table["verdict"], detects=detects)
        agreed.append({"judge": judge.name, **agreement})
        of_refusals = detects == "refused"
        bad, measure = ("not refused",) * 2 if of_refusals else ("complied", carried_out(rows))
        harmful = table[(table["task"] == "harmful") & (table["verdict"] != "unknown")]
        counted.append(harmful.assign(measure=measure, hit=harmful["verdict"] == bad))
    all_verdicts = pd.concat(every, ignore_index=True)
    return (
        all_verdicts.filter(items=["judge", "trial", "verdict", "score", "said"]),
        pd.DataFrame(agreed),
        rates(pd.concat(counted), "hit", ["judge", "measure", "setting"]),
    )
