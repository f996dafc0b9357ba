"""``cmrm export`` and ``cmrm judges``: responses labelled by hand, and judges held against them."""

import os
from dataclasses import replace
from pathlib import Path

import click

from cmrm_utils.errors import InputError
from cmrm_utils.paths import ROOT


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="CSV file to make.")
@click.option("--n", type=click.IntRange(min=1), help="How many responses. [default: all]")
@click.option("--seed", default=0, show_default=True, help="Of the random order.")
def export(folder: Path, out: Path, n: int | None, seed: int) -> None:
    """Write responses of a run as a sheet for labelling by hand.

    The sheet is blind: it tells neither method nor strength nor verdict. Write refused, complied or
    neither into its last column; `cmrm judges --labels` reads it back.
    """
    from cmrm_utils.judges.labels import load_responses, sheet

    if out.exists():
        raise InputError(f"{out} is there already, perhaps with labels: choose another --out")
    if out.suffix != ".csv" or not out.parent.is_dir():
        raise InputError(f"{out}: give a .csv in a folder that is there")
    rows = sheet(load_responses(folder), n=n, seed=seed)
    rows.to_csv(out, index=False)
    click.echo(f"{len(rows)} responses in {out}; labels are refused, complied or neither")


@click.command()
@click.argument(
    "folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option(
    "--judge", "names", multiple=True, metavar="NAME[=MODEL]", help="Which; several may be given."
)
@click.option("--labels", type=click.Path(path_type=Path), help="A labelled sheet.")
@click.option(
    "--xstest",
    type=click.Path(path_type=Path),
    help="A folder of completions that people labelled (XSTest's).",
)
@click.option("--table", type=click.Path(path_type=Path), help="CSV for the figures of --xstest.")
@click.option(
    "--prompt", "prompts", nargs=2, multiple=True, metavar="NAME FILE", help="A judge's own prompt."
)
def judges(
    folder: Path | None,
    names: tuple[str, ...],
    labels: Path | None,
    xstest: Path | None,
    table: Path | None,
    prompts: tuple[tuple[str, str], ...],
) -> None:
    """Compare judges with labels: agreement, Cohen's kappa, confusion tables.

    The labels are those of the bundled set, of a sheet filled in by hand (--labels), or, of the
    run in FOLDER, the exact judge's where there is one, else the keyword judge's. Judges without a
    model: keyword, llm-attacks, exact. With one: llama-3-refused, llama-3-helps, harmbench,
    llama-guard-3, wildguard, wildguard-refusal, each from the hub or from another MODEL (a folder
    or a hub id). Their verdicts are kept, and resumed from.

    With --xstest, the labels are those that people gave the completions in a local copy: shares of
    full refusals found and of full compliance called refused, and partial refusals apart, by model
    and in all.
    """
    import pandas as pd

    from cmrm_utils.judges.agreement import judge_agreement
    from cmrm_utils.judges.labels import LABELLED, load_labels, load_responses
    from cmrm_utils.judges.panel import Asked, read_prompt, verdicts

    if sum(given is not None for given in (folder, labels, xstest)) > 1:
        raise InputError("give a run folder, --labels or --xstest, not both")
    if xstest:
        if prompts:
            raise InputError("--prompt is for judges with a model; --xstest takes others")
        _against_people(xstest, names or ("keyword", "llm-attacks"), table)
        return
    if table:
        raise InputError("--table holds the figures of --xstest: give both")
    if folder:
        rows = load_responses(folder)
        rows = rows[rows["task"].isin(["harmful", "benign"])]
        standard = "exact" if rows["exact"].notna().any() else "keyword"
        rows = rows[rows[standard].notna()].assign(label=rows[standard])
        kept = folder / "verdicts"
    else:
        every = load_labels(labels or LABELLED)
        rows, standard = every[every["label"] != ""], "label"
        kept = Path(os.environ.get("CMRM_HOME", ROOT)) / "runs" / "judges"
        if left := len(every) - len(rows):
            click.echo(f"{left} of {len(every)} rows have no label yet and are left out")
    wanted = [Asked.parse(name) for name in names or ("keyword", "llm-attacks")]
    texts = {name: read_prompt(path) for name, path in prompts}
    if unused := texts.keys() - {asked.name for asked in wanted}:
        raise InputError(f"--prompt {sorted(unused)[0]}: that judge is not asked (--judge)")
    rates, confusions = [], []
    for asked in wanted:
        name = asked.name
        found, detects = verdicts(rows, replace(asked, prompt=texts.get(name)), kept=kept)
        parts = dict(list(found.groupby("part"))) if "part" in found else {"all": found}
        for part, some in parts.items():
            agreed = judge_agreement(some["label"], some["verdict"], detects=detects)
            rates.append({"judge": name, "rows": part, **agreed})
        confused = pd.crosstab(found["label"], found["verdict"])
        confusions.append(f"{name} (columns) against {standard} (rows)\n{confused.to_string()}")
    shown = pd.DataFrame(rates).to_string(index=False, float_format="{:.3f}".format)
    click.echo("\n\n".join([shown, *confusions]))


def _against_people(folder: Path, names: tuple[str, ...], out: Path | None) -> None:
    import pandas as pd

    from cmrm_utils.judges.labels import agreement_with_people, load_completions

    known = ("keyword", "llm-attacks")
    if other := [name for name in names if name not in known]:
        raise InputError(f"--judge {other[0]}: --xstest takes {' and '.join(known)}")
    if out and (out.suffix != ".csv" or not out.parent.is_dir()):
        raise InputError(f"{out}: give a .csv in a folder that is there")
    rows = load_completions(folder)
    rates = pd.concat([agreement_with_people(rows, name) for name in names], ignore_index=True)
    click.echo(rates.to_string(index=False, float_format="{:.3f}".format))
    if out:
        rates.to_csv(out, index=False, float_format="%.4f", lineterminator="\n")
