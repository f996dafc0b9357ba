"""``cmrm refresh`` and ``cmrm publish``: what of a run is kept in the repository."""

import shutil
import sys
from pathlib import Path

import click
from tqdm import tqdm

from cmrm_utils.errors import InputError
from cmrm_utils.jobs.profiles import CORE, KERNEL_ARGUMENTS, numbered_notebooks, quiet_kernels
from cmrm_utils.jobs.publish import STORED_TABLES, beside_others, stored_table
from cmrm_utils.paths import ROOT, STORED
from cmrm_utils.store import read_table, replacing


@click.command()
@click.option("--only", metavar="NUMBERS", help="Re-execute only these notebooks, as in 03,04.")
def refresh(only: str | None) -> None:
    """Re-execute the committed notebooks in place.

    They are left without timestamps and paths. Starts from empty runs/default and runs/research,
    and keeps the metrics that the tests compare with.
    """
    import nbformat
    from nbclient import NotebookClient

    from cmrm_utils.jobs.kernels import OwnKernel, telling

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

    from cmrm_utils.results.text import markdown_table

    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    if runs and folder.name in STORED_TABLES:
        made = {
            STORED / f"{name}.csv": [
                stored_table(run, source)
                for run in runs
                if (run / "tables" / f"{source}.parquet").is_file()
            ]
            for name, source in STORED_TABLES[folder.name].items()
        }
        for path, tables in made.items():  # all of them read: one that cannot be leaves all as is
            if tables:
                rows = beside_others(path, pd.concat(tables))
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
    shown = markdown_table(read_table(headline))
    target = ROOT / "figures"
    target.mkdir(exist_ok=True)
    for picture in pictures:
        shutil.copy(picture, target / picture.name)
    with replacing(readme) as draft:
        draft.write_text(before + start + shown + end + after, encoding="utf-8")
    click.echo(f"{len(pictures)} figures and the headline table of {folder}")
