"""Responses labelled by hand: the bundled set, and sheets that are filled in and read back."""

from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd

from cmrm_utils.data.rows import read_row_file
from cmrm_utils.errors import InputError
from cmrm_utils.judges.agreement import agreement
from cmrm_utils.judges.outcomes import OUTCOMES, TEXT_JUDGES
from cmrm_utils.results.intervals import wilson
from cmrm_utils.store import read_table

LABELLED = Path(__file__).parent / "labelled.jsonl"
"""The bundled set: made-up responses of many forms, each labelled with its outcome.

Beside the four columns of a sheet, each row has its ``task`` (``harmful`` or ``benign``) and its
``part``. The keyword judge was developed on the half called ``developed``; on the other half,
``measured``, it was only measured.
"""


RESPONSE_COLUMNS = "trial sample kind task setting query response outcome exact keyword".split()
"""What notebook 04 stores of every response on the test split."""


SHEET = ("id", "query", "response", "label")
"""The columns of a sheet."""


HIDDEN = ("id", "sha256", "label")
"""The columns of a labelled sheet whose texts are not told."""


COMPLETIONS = ("id", "prompt", "completion", "final_label")
"""The columns that XSTest's files of completions need."""


PEOPLE = {
    "1_full_compliance": "complied",
    "2_full_refusal": "refused",
    "3_partial_refusal": "partial",
}
"""The labels that two annotators gave XSTest's completions, and their names in tables."""


DEVELOPED_ON = ("llama2orig", "mistralinstruct")
"""The files of XSTest's completions on which the keyword judge's forms were developed."""


def held_back(prompt: str) -> bool:
    """Whether nobody reads answers to a prompt while writing forms: a quarter of all prompts.

    The prompt's own digits decide, so the same prompts are held back for every model.
    """
    return int(sha256(prompt.encode()).hexdigest(), 16) % 4 == 0


def load_labels(path: Path = LABELLED) -> pd.DataFrame:
    """A labelled file, CSV or JSON lines.

    Args:
        path: a sheet of :func:`sheet` with labels filled in, or a file with the same columns; other
            columns are kept.

    Returns:
        One row per response; ``label`` is one of the three outcomes, or empty where none is given.

    Raises:
        InputError: no such file, a missing column, a bad label or a duplicate id, named by file and
            line; no label at all.
    """
    rows = _labelled(path, SHEET, (*OUTCOMES, ""))
    if not any(row["label"] for row in rows):
        raise InputError(f"{path}: no row has a label yet; write {', '.join(OUTCOMES)}")
    return pd.DataFrame(rows)


def _labelled(path: Path, columns: Sequence[str], labels: Collection[str]) -> list[dict[str, Any]]:
    """Rows of a labelled file; the last of the ``columns`` is the label, in lower case."""
    rows: dict[str, dict[str, Any]] = {}
    column = columns[-1]
    for number, row in read_row_file(path):
        where = f"{path}:{number}"
        if missing := [name for name in columns if row.get(name) is None]:
            raise InputError(f"{where}: no {', '.join(missing)}; a row has {', '.join(columns)}")
        if wrong := [name for name in columns if not isinstance(row[name], str)]:
            raise InputError(f"{where}: {wrong[0]} must be text, not {row[wrong[0]]!r:.40}")
        row[column] = label = row[column].strip().lower()
        if label not in labels:
            known = ", ".join(filter(None, labels))
            raise InputError(f"{where}: {column} {label!r} is none of {known}")
        if row["id"] in rows:
            raise InputError(f"{where}: duplicate id {row['id']!r}")
        rows[row["id"]] = row
    return list(rows.values())


def load_completions(folder: Path) -> pd.DataFrame:
    """Completions that people labelled, as XSTest has them: one CSV per model.

    Args:
        folder: a local copy; none comes with the workbook.

    Returns:
        One row per completion: ``model`` (the file's name), ``id``, ``query``, ``response``, and
        ``label``, one of ``complied``, ``refused``, ``partial``.

    Raises:
        InputError: no such files, a missing column, a bad label or a duplicate id, named by file
            and line.
    """
    tables = []
    for path in sorted(folder.glob("*.csv")):
        rows = _labelled(path, COMPLETIONS, PEOPLE)
        if not rows:
            raise InputError(f"{path}: no completions in it")
        tables.append(pd.DataFrame(rows).assign(model=path.stem))
    if not tables:
        raise InputError(f"{folder}: no .csv of completions there")
    every = pd.concat(tables, ignore_index=True)
    every["label"] = every["final_label"].map(PEOPLE)
    columns = ["model", "id", "prompt", "completion", "label"]
    return every[columns].rename(columns={"prompt": "query", "completion": "response"})


def agreement_with_people(rows: pd.DataFrame, judge: str) -> pd.DataFrame:
    """A judge's refusals against those that people labelled.

    Args:
        rows: completions (:func:`load_completions`).
        judge: a judge that needs no model and knows refusals.

    Returns:
        One row per model, then ``developed`` and ``held back`` (the models on which forms were
        developed, and the others, if there are both sorts) and ``all``; after each, the same over
        the prompts that are :func:`held_back`, if there are any. Columns: ``judge, rows, forms``
        (``developed``, ``held back`` or ``both``) and ``n``; the share of full ``refusals`` that
        the judge finds, its 95% interval ``low, high`` and their number ``n_refusals``; the share
        of full compliance that it calls refused, ``false_alarms``, out of ``n_complied``; ``kappa``
        between judge and people; the share of partial refusals that it calls refused, ``partial``,
        out of ``n_partial``. A share of nothing is NaN.
    """
    verdicts = map(TEXT_JUDGES[judge], rows["query"], rows["response"])
    rows = rows.assign(hit=[verdict == "refused" for verdict in verdicts])
    new = ~rows["model"].isin(DEVELOPED_ON)
    sorts = [("developed", rows[~new]), ("held back", rows[new])]
    both = sorts if new.any() and not new.all() else []
    table = []
    for name, part in [*rows.groupby("model"), *both, ("all", rows)]:
        table.append({"judge": judge, "rows": name, **_shares(part)})
        unread = part[part["query"].map(held_back)]
        if len(unread):
            table.append({"judge": judge, "rows": f"{name}, held-back prompts", **_shares(unread)})
    return pd.DataFrame(table)


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
    """The responses of a run, with the verdicts of judges that need no model.

    Raises:
        InputError: the run has none, or its table is damaged or lacks a column.
    """
    path = folder / "tables" / "04_responses.parquet"
    if not path.is_file():
        raise InputError(f"{folder}: no responses ({path} is not there); run notebook 04 first")
    rows = read_table(path)
    if missing := set(RESPONSE_COLUMNS) - set(rows.columns):
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}")
    return rows


def sheet(rows: pd.DataFrame, *, n: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Responses to requests as a sheet for labelling by hand.

    The sheet is blind: it shows no method, no strength and no verdict. Equal responses to equal
    queries come once.

    Args:
        rows: responses of a run, with ``trial, task, query, response``.
        n: how many rows the sheet has; None for all.
        seed: of the random order.

    Returns:
        The columns of :data:`SHEET`; ids are trial ids, labels are empty.

    Raises:
        InputError: the run has no responses to requests.
    """
    requests = rows[rows["task"].isin(["harmful", "benign"])]
    once = requests.drop_duplicates(["query", "response"])
    if once.empty:
        raise InputError("no responses to harmful or benign requests: nothing to label")
    # Sorted first, so that the sheet does not depend on the order in which a run wrote its rows.
    mixed = once.sort_values(["query", "response"]).sample(frac=1, random_state=seed)
    chosen = mixed if n is None else mixed.head(n)
    return chosen.assign(id=chosen["trial"], label="")[list(SHEET)]


def hidden(rows: pd.DataFrame) -> pd.DataFrame:
    """A labelled sheet without its texts: a hash stands for each query and response.

    Args:
        rows: of :func:`load_labels`; those without a label are left out.
    """
    return rows[rows["label"] != ""].assign(sha256=_hashes)[list(HIDDEN)]


def revealed(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The responses of a run that a file of :func:`hidden` has labels of.

    Args:
        path: of the file.
        rows: responses with ``query, response``.

    Returns:
        One row per label whose query and response are there, with ``label``.

    Raises:
        InputError: the file is damaged, or has labels of none of the responses.
    """
    labels = pd.DataFrame(_labelled(path, HIDDEN, OUTCOMES), columns=list(HIDDEN))
    once = rows.assign(sha256=_hashes).drop_duplicates("sha256")
    known = once.merge(labels[["sha256", "label"]], on="sha256")
    if known.empty:
        raise InputError(f"{path}: none of its {len(labels)} labels is of a response of this run")
    return known


def _hashes(rows: pd.DataFrame) -> list[str]:
    texts = zip(rows["query"], rows["response"], strict=True)
    return [sha256(f"{query}\0{response}".encode()).hexdigest() for query, response in texts]
