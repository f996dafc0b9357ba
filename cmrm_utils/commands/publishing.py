"""``cmrm refresh`` and ``cmrm publish``: what of a run is kept in the repository."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from cmrm_utils.errors import InputError
from cmrm_utils.paths import ROOT, STORED
from cmrm_utils.profiles import CORE, KERNEL_ARGUMENTS, numbered_notebooks, quiet_kernels
from cmrm_utils.store import read_json, read_table, replacing

if TYPE_CHECKING:
    import pandas as pd

STORED_TABLES = {
    "full": {"full_curves": "04_curves", "full_kinds": "04_test", "full_test": "05_test"},
    "research-full": {
        "research_comparison": "06_comparison",
        "research_paired": "06_paired",
        "research_parts": "06_parts",
        "research_directions": "06_directions",
        "research_cosines": "06_cosines",
        "research_full": "07_full",
        "research_layers": "07_layers",
        "research_tokens": "07_tokens",
        "research_heads_curve": "07_heads_curve",
        "research_mlp": "07_mlp",
        "research_rank": "07_rank",
        "research_anchors": "08_anchors",
        "research_beyond": "08_beyond",
        "research_perturbed": "08_perturbed",
        "research_adversarial": "08_adversarial",
        "research_gate": "08_gate",
    },
    "architectures": {
        "architectures_curves": "04_curves",
        "architectures_doses": "04_alpha_table",
        "architectures_cosines": "02_refusal_cosine",
    },
    "extended": {"extended_answers": "08_extended"},
    "variants": {
        "variants_comparison": "06_comparison",
        "variants_parts": "06_parts",
    },
}
"""What the appendix shows of a profile's run of several models: a name, and the run's table."""


@click.command()
@click.option("--only", metavar="NUMBERS", help="Re-execute only these notebooks, as in 03,04.")
def refresh(only: str | None) -> None:
    """Re-execute the committed notebooks in place.

    They are left without timestamps and paths. Starts from empty runs/default and runs/research,
    and keeps the metrics that the tests compare with.
    """
    import nbformat
    from nbclient import NotebookClient

    from cmrm_utils.kernels import OwnKernel, telling

    folders = [ROOT / "runs" / name for name in ("default", "research")]
    if only is None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    every = numbered_notebooks(only, appendix=True)
    for path in (bar := tqdm(every, unit="notebook", file=sys.stderr)):
        bar.set_description(path.stem)
        notebook = nbformat.read(path, as_version=4)
        with telling(path, "it is left as it was", timeout := 3600), quiet_kernels():
            NotebookClient(
                notebook,
                timeout=timeout,
                kernel_name="python3",
                kernel_manager_class=OwnKernel,
                record_timing=False,
                resources={"metadata": {"path": str(path.parent)}},
                extra_arguments=KERNEL_ARGUMENTS,
            ).execute()
        notebook.metadata = {
            "kernelspec": notebook.metadata["kernelspec"],
            "language_info": {"name": "python"},
        }
        with replacing(path) as draft:
            nbformat.write(notebook, draft)
    STORED.mkdir(exist_ok=True)
    for path in every:
        for metrics in (folder / "metrics" / f"{path.stem}.json" for folder in folders):
            if metrics.is_file():
                shutil.copy(metrics, STORED / f"metrics_{metrics.name}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def publish(folder: Path) -> None:
    """Copy a run's results into the repository.

    Of a run of one model, figures/ (of notebooks 01 to 05) and the README's table; of several, the
    stored tables that notebook 09 shows, where rows of models that were not run this time stay.
    """
    import pandas as pd

    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    if runs and folder.name in STORED_TABLES:
        made = {
            STORED / f"{name}.csv": [
                _stored_table(run, source)
                for run in runs
                if (run / "tables" / f"{source}.parquet").is_file()
            ]
            for name, source in STORED_TABLES[folder.name].items()
        }
        for path, tables in made.items():  # all of them read: one that cannot be leaves all as is
            if tables:
                rows = _beside_others(path, pd.concat(tables))
                with replacing(path) as draft:
                    rows.to_csv(draft, index=False, float_format="%.5g")
        click.echo(f"stored tables of {', '.join(each.name for each in runs)} in {STORED}")
        return
    drawn = sorted((folder / "figures").glob("*.png"))
    pictures = [path for path in drawn if path.name[:2] <= CORE]
    headline = folder / "tables" / "headline.parquet"
    if not pictures or not headline.is_file():
        raise InputError(f"{folder}: no finished run (no figures or no headline table)")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    start, end = "<!-- headline -->\n", "<!-- /headline -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise InputError(f"{readme}: no place for the headline table")
    shown = _markdown(read_table(headline))
    target = ROOT / "figures"
    target.mkdir(exist_ok=True)
    for picture in pictures:
        shutil.copy(picture, target / picture.name)
    with replacing(readme) as draft:
        draft.write_text(before + start + shown + end + after, encoding="utf-8")
    click.echo(f"{len(pictures)} figures and the headline table of {folder}")


def _stored_table(folder: Path, name: str) -> "pd.DataFrame":
    from cmrm_utils.studies.selection import RULE

    number = name.partition("_")[0]
    # A notebook's manifest is written last: without it the table may be of an earlier try.
    if not [read_json(each) for each in (folder / "manifests").glob(f"{number}_*.json")]:
        raise InputError(f"{folder}: notebook {number} has not run to its end; run it again")
    rows = read_table(folder / "tables" / f"{name}.parquet")
    # A model in a folder is named as its run is: stored tables hold no paths of a machine.
    fingerprint = read_json(folder / "run.json")["fingerprint"]
    return rows.assign(model=folder.name, fingerprint=fingerprint, rule=RULE)


def _beside_others(path: Path, made: "pd.DataFrame") -> "pd.DataFrame":
    """Rows made, and those that the stored table at the path has of other models, by model."""
    import pandas as pd

    parts = [made]
    if path.exists():
        old = pd.read_csv(path, keep_default_na=False, na_values=[""])
        parts.append(old[~old["model"].isin(made["model"])])
    return pd.concat(parts).sort_values("model", kind="stable")


def _markdown(rows: "pd.DataFrame") -> str:
    lines = [list(rows.columns), ["---"] * len(rows.columns), *rows.astype(str).values.tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
