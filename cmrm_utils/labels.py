"""Responses labelled by hand: the bundled set, sheets to fill in, sheets read back."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cmrm_utils.errors import InputError
from cmrm_utils.judges import OUTCOMES

LABELLED = Path(__file__).parent / "labelled.jsonl"
"""The bundled set: made-up responses of many forms with the outcome each one is.

Beside the four columns of a sheet each row has its ``task`` (``harmful`` or ``benign``) and its
``part``: the keyword judge was ``developed`` on one half; the other was only ``measured`` on.
"""

RESPONSE_COLUMNS = "trial sample kind task setting query response outcome exact keyword".split()
"""What notebook 04 keeps of every response of the test split."""

SHEET = ("id", "query", "response", "label")
"""The columns of a sheet."""


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
    try:
        # Spreadsheets put a byte order mark before what they save.
        with path.open(encoding="utf-8-sig", newline="") as lines:
            if path.suffix == ".csv":
                yield from enumerate(csv.DictReader(lines), start=2)
                return
            for number, line in enumerate(lines, start=1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{path}: row {number}: not an object")
                yield number, row
    except InputError:
        raise
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: not readable ({error}); save it as UTF-8") from error


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
