"""Judges by name on a table of responses: those that need no model, and those that are models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cmrm_utils.errors import InputError
from cmrm_utils.judges.agreement import judge_agreement
from cmrm_utils.judges.model_judges import judge_responses, load_judge
from cmrm_utils.judges.outcomes import TEXT_JUDGES
from cmrm_utils.results.rates import rates


@dataclass(frozen=True)
class Asked:
    """A judge that is asked.

    Attributes:
        name: of :data:`~cmrm_utils.judges.outcomes.TEXT_JUDGES` or
            :data:`~cmrm_utils.judges.model_judges.JUDGES`.
        source: of a model judge, a folder or hub id in place of its own.
        prompt: of a model judge, a text in place of its own.
    """

    name: str
    source: str | None = None
    prompt: str | None = None

    @classmethod
    def parse(cls, item: str | Mapping[str, Any]) -> "Asked":
        """Read ``NAME``, ``NAME=MODEL``, or ``{judge: NAME, model: MODEL, prompt: FILE}``.

        Raises:
            InputError: it is of neither form, or the prompt's file cannot be read.
        """
        if isinstance(item, str):
            name, _, source = item.partition("=")
            return cls(name, source or None)
        if not isinstance(item, Mapping) or not {"judge"} <= set(item) <= {
            "judge",
            "model",
            "prompt",
        }:
            raise InputError(
                f"judge {item!r}: write NAME, NAME=MODEL, or {{judge: NAME, model: MODEL, "
                "prompt: FILE}"
            )
        prompt = item.get("prompt")
        return cls(item["judge"], item.get("model"), read_prompt(prompt) if prompt else None)


def read_prompt(path: str | Path) -> str:
    """The text of a judge's own prompt.

    Raises:
        InputError: there is none.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"prompt of a judge: no readable text file at {path}") from error


def verdicts(rows: pd.DataFrame, asked: Asked, *, kept: Path) -> tuple[pd.DataFrame, str | None]:
    """What a judge says of responses.

    Args:
        rows: ``query`` (``request`` where there is one, it is what is read) and ``response``;
            ``task`` where there is one.
        asked: who judges.
        kept: the folder that a model judge's verdicts are kept in, and resumed from.

    Returns:
        The rows that it can judge (one that judges harm leaves benign requests out) with
        ``verdict``, and of model judges ``score`` and ``said``; the outcome that a judge of two
        verdicts tells from the rest, None for one of three.

    Raises:
        InputError: no such judge or model; verdicts kept of another one; nothing to judge.
    """
    read = "request" if "request" in rows else "query"
    if asked.name == "exact":
        if "exact" not in rows:  # ordinary English can be worded like a request of the world
            raise InputError(
                "judge exact: these responses do not say whether their requests are of the "
                "organism's world; give the folder of a run"
            )
        found, detects = rows.assign(verdict=rows["exact"].fillna("unknown")), None
    elif asked.name in TEXT_JUDGES:
        judge = TEXT_JUDGES[asked.name]
        pairs = zip(rows[read], rows["response"], strict=True)
        made = [str(judge(*pair) or "unknown") for pair in pairs]
        found, detects = rows.assign(verdict=made), None
    else:
        model = load_judge(asked.name, asked.source, prompt=asked.prompt)
        detects = model.form.detects
        if model.form.harmful_only and "task" in rows:
            rows = rows[rows["task"] != "benign"]
        out = kept / f"{asked.name}.jsonl"
        queries, responses = list(rows[read]), list(rows["response"])
        said = judge_responses(model, queries, responses, out=out, progress=True)
        found = rows.assign(
            verdict=[one.label for one in said],
            score=[one.score for one in said],
            said=[one.said for one in said],
        )
    if found.empty:
        raise InputError(f"judge {asked.name}: there is no response that it could judge")
    return found, detects


def panel(
    rows: pd.DataFrame, judges: Sequence[Asked], standard: str, *, kept: Path
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Several judges on the same responses.

    Args:
        rows: judged trials with ``setting``, of harmful and benign requests.
        judges: who judges, at least one.
        standard: the column of outcomes that they are held against.
        kept: as for :func:`verdicts`.

    Returns:
        Every verdict (``judge, trial, verdict`` and of model judges ``score, said``); agreement
        with the standard, a row a judge (:func:`.judge_agreement`); the unsafe rate of harmful
        requests by ``judge`` and ``setting``. Unsafe is what a judge calls complied; of one that
        tells refusals alone, what is no refusal; ``unknown`` is neither.
    """
    every, agreed, unsafe = [], [], []
    for asked in judges:
        found, detects = verdicts(rows, asked, kept=kept)
        found = found.assign(judge=asked.name)
        every.append(found)
        agreement = judge_agreement(found[standard], found["verdict"], detects=detects)
        agreed.append({"judge": asked.name, **agreement})
        bad = "not refused" if detects == "refused" else "complied"
        harmful = found[(found["task"] == "harmful") & (found["verdict"] != "unknown")]
        unsafe.append(harmful.assign(hit=harmful["verdict"] == bad))
    said = pd.concat(every, ignore_index=True)
    columns = ["judge", "trial", "verdict", "score", "said"]
    return (
        said[[column for column in columns if column in said]],
        pd.DataFrame(agreed),
        rates(pd.concat(unsafe), "hit", ["judge", "setting"]),
    )
