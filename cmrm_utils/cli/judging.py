"""``cmrm export`` and ``cmrm judges``: sheets to label by hand, and judges compared with labels."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmrm_utils.cli.group import FOLDER, NEW_FILE, PATH, cli
from cmrm_utils.errors import InputError
from cmrm_utils.paths import ROOT

if TYPE_CHECKING:
    import pandas as pd


@cli.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=NEW_FILE, required=True, help="CSV file to make.")
@click.option("--n", type=click.IntRange(min=1), help="How many responses. [default: all]")
@click.option("--seed", default=0, show_default=True, help="Of the random order.")
def export(folder: Path, out: Path, n: int | None, seed: int) -> None:
    """Write responses of a run as a sheet for labelling by hand.

    The sheet is blind: it shows no method, no strength and no verdict. Write refused, complied or
    neither into its last column; `cmrm judges --labels` reads it back.
    """
    from cmrm_utils.judges.labels import load_responses, sheet

    if out.exists():
        raise InputError(f"{out} exists, perhaps with labels: choose another --out")
    _check_csv(out)
    rows = sheet(load_responses(folder), n=n, seed=seed)
    rows.to_csv(out, index=False)
    click.echo(f"{len(rows)} responses in {out}; labels are refused, complied or neither")


@cli.command()
@click.argument("folder", required=False, type=FOLDER)
@click.option("--judge", "names", multiple=True, metavar="NAME[=MODEL]", help="May be repeated.")
@click.option("--labels", type=PATH, help="A labelled sheet; with FOLDER, one that tells no texts.")
@click.option("--hide", type=NEW_FILE, help="CSV for the labels of --labels without their texts.")
@click.option("--xstest", type=PATH, help="A folder of completions that people labelled (XSTest).")
@click.option("--table", type=NEW_FILE, help="CSV for the figures of --xstest.")
@click.option(
    "--prompt", "prompts", nargs=2, multiple=True, metavar="NAME FILE", help="A judge's own prompt."
)
def judges(
    folder: Path | None,
    names: tuple[str, ...],
    labels: Path | None,
    hide: Path | None,
    xstest: Path | None,
    table: Path | None,
    prompts: tuple[tuple[str, str], ...],
) -> None:
    """Compare judges with labels: agreement, Cohen's kappa, confusion tables.

    The labels are those of the bundled set, or of a sheet filled in by hand (--labels). For the run
    in FOLDER they are the exact judge's verdicts where there are any, else the keyword judge's.
    Judges without a model: keyword, llm-attacks, exact. Judges with one: llama-3-refused,
    llama-3-helps, harmbench, llama-guard-3, wildguard, wildguard-refusal, each from the hub or from
    another MODEL (a folder or a hub id). Their verdicts are kept, and reused by the next call.

    Responses that must not be told are labelled all the same: --hide writes the labels of a sheet
    beside a hash of each text. A run FOLDER with such a file as --labels is compared with these.

    With --xstest, the labels are those that people gave the completions in a local copy. Shown are,
    by model and in all, the shares called refused of full refusals, of full compliance and of
    partial refusals.
    """
    names = names or ("keyword", "llm-attacks")
    if xstest and (folder or labels):
        raise InputError("--xstest goes with neither a run folder nor --labels")
    if hide and (folder or not labels):
        raise InputError("--hide writes the labels of a sheet: give --labels, and no run folder")
    if xstest and prompts:
        raise InputError("--prompt is for judges with a model; --xstest takes others")
    if table and not xstest:
        raise InputError("--table holds the figures of --xstest: give both")
    if xstest:
        _compare_with_people(xstest, names, table)
    elif hide and labels:
        _hide(labels, hide)
    elif folder:
        standard = _revealed(folder, labels) if labels else _labelled_by_judge(folder)
        _compare(*standard, names, dict(prompts), folder / "verdicts")
    else:
        place = Path(os.environ.get("CMRM_HOME", ROOT)) / "runs" / "judges"
        _compare(_labelled_by_hand(labels), "label", names, dict(prompts), place)


def _labelled_by_judge(folder: Path) -> tuple["pd.DataFrame", str]:
    """A run's responses to requests, and the column of verdicts that are their labels."""
    from cmrm_utils.judges.labels import load_responses

    rows = load_responses(folder)
    rows = rows[rows["task"].isin(["harmful", "benign"])]
    standard = "exact" if rows["exact"].notna().any() else "keyword"
    return rows[rows[standard].notna()].assign(label=rows[standard]), standard


def _revealed(folder: Path, labels: Path) -> tuple["pd.DataFrame", str]:
    """A run's responses that are labelled in a file without texts, and that column's name."""
    from cmrm_utils.judges.labels import load_responses, revealed

    return revealed(labels, load_responses(folder)), "label"


def _hide(sheet: Path, out: Path) -> None:
    """Write a sheet's labels beside a hash of each text."""
    from cmrm_utils.judges.labels import hidden, load_labels

    _check_csv(out)
    rows = hidden(load_labels(sheet))
    rows.to_csv(out, index=False, lineterminator="\n")
    click.echo(f"{len(rows)} labels in {out}, without their texts")


def _labelled_by_hand(path: Path | None) -> "pd.DataFrame":
    """The labelled rows of a sheet; None for the bundled set."""
    from cmrm_utils.judges.labels import LABELLED, load_labels

    every = load_labels(path or LABELLED)
    rows = every[every["label"] != ""]
    if left := len(every) - len(rows):
        click.echo(f"{left} of {len(every)} rows have no label yet and are left out")
    return rows


def _compare(
    rows: "pd.DataFrame",
    standard: str,
    names: tuple[str, ...],
    prompts: dict[str, str],
    folder: Path,
) -> None:
    """Print how judges agree with the column ``label``; ``standard`` is its name in tables."""
    import pandas as pd

    from cmrm_utils.judges.agreement import judge_agreement
    from cmrm_utils.judges.panel import NamedJudge, read_prompt, verdicts

    judges = [NamedJudge.parse(name) for name in names]
    texts = {name: read_prompt(path) for name, path in prompts.items()}
    if unused := texts.keys() - {judge.name for judge in judges}:
        raise InputError(f"--prompt {sorted(unused)[0]}: that judge is not asked (--judge)")
    rows = rows.assign(part=rows.get("part", "all"))
    rates, confusions = [], []
    for judge in judges:
        name = judge.name
        judged, detects = verdicts(rows, replace(judge, prompt=texts.get(name)), folder=folder)
        for part, some in judged.groupby("part"):
            agreement = judge_agreement(some["label"], some["verdict"], detects=detects)
            rates.append({"judge": name, "rows": part, **agreement})
        confusion = pd.crosstab(judged["label"], judged["verdict"])
        confusions.append(f"{name} (columns) against {standard} (rows)\n{confusion.to_string()}")
    table = pd.DataFrame(rates).to_string(index=False, float_format="{:.3f}".format)
    click.echo("\n\n".join([table, *confusions]))


def _compare_with_people(folder: Path, names: tuple[str, ...], out: Path | None) -> None:
    """Print, and perhaps write, how judges agree with XSTest's labels."""
    import pandas as pd

    from cmrm_utils.judges.labels import agreement_with_people, load_completions

    known = ("keyword", "llm-attacks")
    if other := [name for name in names if name not in known]:
        raise InputError(f"--judge {other[0]}: --xstest takes {' and '.join(known)}")
    if out:
        _check_csv(out)
    rows = load_completions(folder)
    rates = pd.concat([agreement_with_people(rows, name) for name in names], ignore_index=True)
    click.echo(rates.to_string(index=False, float_format="{:.3f}".format))
    if out:
        rates.to_csv(out, index=False, float_format="%.4f", lineterminator="\n")


def _check_csv(path: Path) -> None:
    if path.suffix != ".csv" or not path.parent.is_dir():
        raise InputError(f"{path}: give a .csv in a folder that exists")
