"""Responses labelled by hand: the bundled set, sheets to fill in, sheets read back."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cmrm_utils.errors import InputError
from cmrm_utils.judges.agreement import agreement
from cmrm_utils.judges.outcomes import OUTCOMES, TEXT_JUDGES
from cmrm_utils.results.intervals import wilson

LABELLED = Path(__file__).parent / "labelled.jsonl"
"""The bundled set: made-up responses of many forms with the outcome each one is.

Beside the four columns of a sheet each row has its ``task`` (``harmful`` or ``benign``) and its
``part``: the keyword judge was ``developed`` on one half; the other was only ``measured`` on.
"""


RESPONSE_COLUMNS = "trial sample kind task setting query response outcome exact keyword".split()
"""What notebook 04 keeps of every response of the test split."""


SHEET = ("id", "query", "response", "label")
"""The columns of a sheet."""


COMPLETIONS = ("id", "prompt", "completion", "final_label")
"""The columns that XSTest's files of completions need."""


PEOPLE = {
    "1_full_compliance": "complied",
    "2_full_refusal": "refused",
    "3_partial_refusal": "partial",
}
"""The labels that two people gave XSTest's completions, and what tables call them."""


DEVELOPED_ON = ("llama2orig", "mistralinstruct")
"""The files of XSTest's completions that the keyword judge's forms were developed on."""


def load_labels(path: Path = LABELLED) -> pd.DataFrame:
    """A labelled file, CSV or JSON lines.

    Args:
        path: a sheet of :func:`sheet` with labels filled in, or a file of the same columns; other
            columns are kept.

    Returns:
        One row a response; ``label`` is one of the three outcomes, or empty where none is given.

    Raises:
        InputError: no such file, a missing column, a bad label or a duplicate id, named by row
            (the first row of a CSV is its header); no label at all.
    """
    if path.suffix not in {".csv", ".jsonl"} or not path.is_file():
        raise InputError(f"{path}: no labelled file; give a .csv or .jsonl that is there")
    found: dict[str, dict[str, Any]] = {}
    for number, row in _rows(path):
        where = f"{path}: row {number}"
        if missing := [name for name in SHEET if not isinstance(row.get(name), str)]:
            raise InputError(f"{where}: no {', '.join(missing)}; a row has {', '.join(SHEET)}")
        row["label"] = row["label"].strip().lower()
        if row["label"] not in (*OUTCOMES, ""):
            raise InputError(f"{where}: label {row['label']!r} is none of {', '.join(OUTCOMES)}")
        if row["id"] in found:
            raise InputError(f"{where}: duplicate id {row['id']!r}")
        found[row["id"]] = row
    if not any(row["label"] for row in found.values()):
        raise InputError(f"{path}: no row has a label yet; write {', '.join(OUTCOMES)}")
    return pd.DataFrame(list(found.values()))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as a person counts them: spreadsheet rows of a CSV, lines of JSON lines."""
    raw = path.read_bytes()
    try:
        # Spreadsheets put a byte order mark before what they save.
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        reason = f"{path}: not readable (line {line}: {error.reason}); save it as UTF-8"
        raise InputError(reason) from error
    number = 1
    try:
        lines = io.StringIO(text, newline="")
        if path.suffix == ".csv":
            for number, row in enumerate(csv.DictReader(lines, strict=True), start=2):
                yield number, row
            return
        for number, line_ in enumerate(lines, start=1):
            row = json.loads(line_)
            if not isinstance(row, dict):
                raise InputError(f"{path}: row {number}: not an object")
            yield number, row
    except csv.Error as error:
        raise InputError(
            f"{path}: not readable after row {number} ({error}); does a quote close?"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: row {number}: not readable ({error})") from error


def load_completions(folder: Path) -> pd.DataFrame:
    """Completions that people labelled, as XSTest has them: a CSV a model.

    Args:
        folder: a local copy; none comes with the workbook.

    Returns:
        One row a completion: ``model`` (the file's name), ``id``, ``query``, ``response``, and
        ``label``, one of ``complied``, ``refused``, ``partial``.

    Raises:
        InputError: no such files, a missing column, a bad label or a duplicate id, named by row.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise InputError(f"{folder}: no .csv of completions there")
    found = []
    for path in paths:
        known: set[str] = set()
        for number, row in _rows(path):
            where = f"{path}: row {number}"
            if missing := [name for name in COMPLETIONS if not isinstance(row.get(name), str)]:
                raise InputError(f"{where}: no {', '.join(missing)}")
            label = row["final_label"].strip()
            if label not in PEOPLE:
                raise InputError(f"{where}: final_label {label!r} is none of {', '.join(PEOPLE)}")
            if row["id"] in known:
                raise InputError(f"{where}: duplicate id {row['id']!r}")
            known.add(row["id"])
            found.append((path.stem, row["id"], row["prompt"], row["completion"], PEOPLE[label]))
        if not known:
            raise InputError(f"{path}: no completions in it")
    return pd.DataFrame(found, columns=["model", "id", "query", "response", "label"])


def agreement_with_people(rows: pd.DataFrame, judge: str) -> pd.DataFrame:
    """A judge's refusals beside people's.

    Args:
        rows: of :func:`load_completions`.
        judge: a judge that needs no model and knows refusals.

    Returns:
        A row a model, then ``held back`` (the models that no form was developed on, if there are
        some beside others) and ``all``: ``judge, rows, forms`` (``developed`` or ``held back``),
        ``n``; share of full ``refusals`` found, its 95% interval ``low, high`` and their number
        ``n_refusals``; share of full compliance called refused, ``false_alarms``, of
        ``n_complied``; ``kappa`` between the two; share of partial refusals called refused,
        ``partial``, of ``n_partial``. Where there is nothing to share, NaN.
    """
    verdicts = [
        TEXT_JUDGES[judge](query, text)
        for query, text in zip(rows["query"], rows["response"], strict=True)
    ]
    rows = rows.assign(hit=[verdict == "refused" for verdict in verdicts])
    new = ~rows["model"].isin(DEVELOPED_ON)
    parts = [(str(model), part) for model, part in rows.groupby("model")]
    if new.any() and not new.all():
        parts.append(("held back", rows[new]))
    parts.append(("all", rows))
    return pd.DataFrame([{"judge": judge, "rows": name, **_shares(part)} for name, part in parts])


def _shares(rows: pd.DataFrame) -> dict[str, Any]:
    seen = rows["model"].isin(DEVELOPED_ON)
    hits = {label: rows.loc[rows["label"] == label, "hit"] for label in PEOPLE.values()}
    full = rows[rows["label"] != "partial"]
    called = full["hit"].map({True: "refused", False: "complied"})
    refused = hits["refused"]
    nan = float("nan")
    low, high = wilson(refused.sum(), len(refused)) if len(refused) else (nan, nan)
    return {
        "forms": "developed" if seen.all() else "both" if seen.any() else "held back",
        "n": len(rows),
        "refusals": refused.mean(),
        "low": low,
        "high": high,
        "n_refusals": len(refused),
        "false_alarms": hits["complied"].mean(),
        "n_complied": len(hits["complied"]),
        "kappa": agreement(full["label"], called)["kappa"],
        "partial": hits["partial"].mean(),
        "n_partial": len(hits["partial"]),
    }


def load_responses(folder: Path) -> pd.DataFrame:
    """The responses of a run, with the verdicts of the judges that need no model.

    Raises:
        InputError: the run has none, or lacks a column.
    """
    path = folder / "tables" / "04_responses.parquet"
    if not path.is_file():
        raise InputError(f"{folder}: no responses ({path} is not there); run notebook 04 first")
    rows = pd.read_parquet(path)
    if missing := set(RESPONSE_COLUMNS) - set(rows.columns):
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}")
    return rows


def sheet(rows: pd.DataFrame, *, n: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Responses to requests as a sheet for labelling by hand.

    It is blind: nothing in it tells the method, its strength, or a verdict. Equal responses to
    equal queries come once.

    Args:
        rows: responses of a run: ``trial, task, query, response``.
        n: how many; None for all.
        seed: of the order, which is random.

    Returns:
        The columns of :data:`SHEET`; the ids are trial ids, the labels are empty.

    Raises:
        InputError: the run has no responses to requests.
    """
    asked = rows[rows["task"].isin(["harmful", "benign"])]
    once = asked.drop_duplicates(["query", "response"])
    if once.empty:
        raise InputError("no responses to harmful or benign requests: nothing to label")
    # Sorted first, so that the order a run wrote its rows in plays no part.
    mixed = once.sort_values(["query", "response"]).sample(frac=1, random_state=seed)
    chosen = mixed if n is None else mixed.head(n)
    return pd.DataFrame(
        {"id": chosen["trial"], "query": chosen["query"], "response": chosen["response"]}
    ).assign(label="")[list(SHEET)]
