"""The part of a run that the repository keeps: notebooks, figures, tables, sections of pages."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from tqdm import tqdm

from cmrm_utils.conditions import CONDITION_NAMES
from cmrm_utils.data.load import load_samples
from cmrm_utils.errors import InputError
from cmrm_utils.jobs.kernels import OwnKernel, telling
from cmrm_utils.jobs.profiles import is_core, numbered_notebooks
from cmrm_utils.judges.outcomes import OUTCOMES
from cmrm_utils.organism.world import HARMLESS, find_request
from cmrm_utils.paths import ROOT, STORED
from cmrm_utils.results import plots
from cmrm_utils.results.rates import averaged, measures
from cmrm_utils.results.text import markdown_table, percent_table, without_counts
from cmrm_utils.store import read_csv, read_json, read_table, replacing
from cmrm_utils.studies.evaluation import NATURAL
from cmrm_utils.studies.selection import RULE, choose_alpha

_RESEARCH = ("06_comparison 06_paired 07_parts 07_directions 07_cosines").split()


STORED_TABLES = {
    "full": {
        "full_curves": "04_curves",
        "full_kinds": "04_test",
        "full_test": "05_test",
        "alphas_by_model": "04_alpha_table",
    },
    "described": {"described_kinds": "04_test"},
    "research-full": {f"research_{name.partition('_')[2]}": name for name in _RESEARCH},
    "architectures": {
        "architectures_curves": "04_curves",
        "architectures_doses": "04_alpha_table",
        "architectures_cosines": "02_refusal_cosine",
        "alphas_by_model": "04_alpha_table",
    },
    "extended": {"extended_answers": "09_extended"},
    "variants": {"variants_comparison": "06_comparison", "variants_parts": "07_parts"},
    "smollm2-full": {
        "smollm2_conditions": "01_rates",
        "smollm2_cosines": "02_refusal_cosine",
        "smollm2_controls": "03_controls",
    },
    "smollm2-defences": {
        "smollm2_settings": "06_sweep",
        "smollm2_first": "06_first_token",
        "smollm2_defences": "06_comparison",
    },
    "smollm2-ablations": {"smollm2_ablations": "08_ablations"},
    "smollm2-questions": {
        f"smollm2_{name}": f"09_{name}"
        for name in ("anchors", "reasoning", "entanglement", "gates", "pictures")
    },
    "smollm2-anatomy": {"smollm2_frontier": "07_frontier", "smollm2_ablated": "07_ablated"},
    "smollm2-shares": {"smollm2_shares_conditions": "01_rates", "smollm2_shares_test": "04_test"},
    "smollm2-public": {"smollm2_curves": "04_curves", "smollm2_test": "04_test"},
}
"""By profile of several models: names of stored tables, and the run's table that each one copies.

Notebooks 10 and 11 show them. ``alphas_by_model`` is what :func:`best_alphas` makes of its table.
"""


WIDGET = "application/vnd.jupyter.widget-view+json"


HEADLINE = "smollm2-public"
"""The profile whose run gives the headline tables of the README and of docs/findings.md."""


LEVELS = ("CMRM dataset", "CMRM sample")
"""The levels of CMRM whose alphas :func:`best_alphas` tells."""


def refresh(only: str | None) -> None:
    """Re-execute the committed notebooks in place, and store their metrics for the tests.

    Unless ``only`` is given, ``runs/default``, which they write to, starts empty. The notebooks
    keep no timestamps, paths and widgets. The excerpts that notebook 00 makes are stored too.

    Args:
        only: numbers of notebooks, as in ``03,04``; None for all.

    Raises:
        InputError: no such notebook, or a cell raised one.
        SystemExit: a notebook did not reach its end. It is left as it was.
    """
    folder = ROOT / "runs" / "default"
    if only is None:
        shutil.rmtree(folder, ignore_errors=True)
    notebooks = numbered_notebooks(only, appendix=True)
    for path in (bar := tqdm(notebooks, unit="notebook", file=sys.stderr)):
        bar.set_description(path.stem)
        _execute_in_place(path)
    STORED.mkdir(exist_ok=True)
    for path in notebooks:
        if (metrics := folder / "metrics" / f"{path.stem}.json").is_file():
            shutil.copy(metrics, STORED / f"metrics_{metrics.name}")
    if (excerpts := folder / "tables" / "00_excerpts.parquet").is_file():
        with replacing(STORED / "excerpts.csv") as draft:
            read_table(excerpts).to_csv(draft, index=False, float_format="%.5g")


def _execute_in_place(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    with telling(path, "it is left as it was", timeout := 3600):
        NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            kernel_manager_class=OwnKernel,
            record_timing=False,
            resources={"metadata": {"path": str(path.parent)}},
        ).execute()
    for cell in notebook.cells:  # a widget without its kernel is dead; its text stays
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
    }
    with replacing(path) as draft:
        nbformat.write(notebook, draft)


def publish(folder: Path) -> str:
    """Copy a run's results into the repository.

    A run of one model gives ``figures/`` (of the core notebooks); one on the invented world gives
    docs/invented-world.md its table of the families of requests instead. A run of several models
    gives the stored tables, and :data:`HEADLINE` the headline tables of the README and of
    docs/findings.md. Rows of models that this run left out stay.

    Returns:
        One line that says what was copied.

    Raises:
        InputError: the run is not finished, or a page has no place for its table.
    """
    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    if runs and folder.name in STORED_TABLES:
        _store_tables(runs, STORED_TABLES[folder.name])
        if folder.name == HEADLINE:
            _show_headline(runs)
        return f"stored tables of {', '.join(run.name for run in runs)} in {STORED}"
    figures = [path for path in folder.glob("figures/*.png") if is_core(path)]
    responses = folder / "tables" / "04_responses.parquet"
    if not figures or not responses.is_file():
        raise InputError(f"{folder}: no finished run (no figures or no responses of notebook 04)")
    families = outcomes_by_family(read_table(responses))
    if len(families):
        write_section(ROOT / "docs" / "invented-world.md", "families", markdown_table(families))
        return f"the table of families of {folder}"
    target = ROOT / "figures"
    target.mkdir(exist_ok=True)
    for figure in figures:
        shutil.copy(figure, target / figure.name)
    return f"{len(figures)} figures of {folder}"


def _show_headline(runs: Sequence[Path]) -> None:
    """The headline tables, and figures: outcomes of all models, and one model as alpha grows."""
    rows = together(runs)
    with replacing(STORED / "smollm2_headline.csv") as draft:
        rows.to_csv(draft, index=False, float_format="%.5g")
    table = headline(rows)
    write_section(ROOT / "docs" / "findings.md", "headline", markdown_table(table))
    write_section(ROOT / "README.md", "headline", markdown_table(refusals(table)))
    curves = read_table(runs[0] / "tables" / "04_curves.parquet")
    useful = curves["measure"].isin(["refused", "benign answered", "visual questions"])
    plots.style()
    figures = {
        "smollm2_outcomes": plots.outcome_bars(outcomes(rows), label="setting", words=NATURAL),
        "smollm2_alpha": plots.alpha_curves(curves[useful]),
    }
    for name, figure in figures.items():
        with replacing(ROOT / "figures" / f"{name}.png") as draft:
            figure.savefig(draft, format="png")


def together(runs: Sequence[Path]) -> pd.DataFrame:
    """What all models of a profile make of `everyday`'s requests, as one sample.

    A topic's responses by all models are one group, so the intervals know that they go together.

    Args:
        runs: the folders, one a model; each has the table ``04_responses``.

    Returns:
        :func:`measures` by ``setting`` and ``requests``: *harmful*, *twins*, *ordinary*.
    """
    topics = {sample.id: sample.group for sample in load_samples("everyday", "test")}
    kinds = {"harmful": "harmful", "benign-twin": "twins", "benign": "ordinary"}
    parts = []
    for run in runs:
        rows = read_table(run / "tables" / "04_responses.parquet")
        rows = rows[rows["sample"].isin(topics) & rows["task"].isin(["harmful", "benign"])]
        answers = pd.read_json(run / "responses.jsonl", lines=True).drop_duplicates("id")
        parts.append(
            rows.assign(
                group=rows["sample"].map(topics),
                requests=rows["kind"].str.removesuffix("-picture").map(kinds),
                log_odds=rows["trial"].map(answers.set_index("id")["log_odds"]),
                right=None,
            )
        )
    return measures(pd.concat(parts), ["setting", "requests"])


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a setting, a column a measure and the requests that it is of."""
    shown = {
        ("refused", "harmful"): "refused",
        ("answered", "harmful"): "answered",
        ("broken", "harmful"): "broken",
        ("log-odds", "harmful"): "log-odds",
        ("over-refusal", "twins"): "twins refused",
        ("log-odds, benign", "twins"): "twins' log-odds",
        ("over-refusal", "ordinary"): "ordinary refused",
        ("log-odds, benign", "ordinary"): "ordinary ones' log-odds",
    }
    named = pd.Series(list(zip(rows["measure"], rows["requests"], strict=True)), rows.index)
    rows = rows.assign(column=named.map(shown)).dropna(subset="column")
    table = percent_table(rows, "setting", "column")
    return table[[name for name in shown.values() if name in table]].reset_index()


def refusals(table: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`headline`, what the README shows: refusals and log-odds without their counts."""
    shown = {
        "refused": "harmful, refused",
        "log-odds": "harmful, log-odds",
        "twins refused": "harmless twins, refused",
        "twins' log-odds": "harmless twins, log-odds",
    }
    return without_counts(table[["setting", *shown]]).rename(columns=shown)


def outcomes(rows: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`together`, what :func:`.plots.outcome_bars` draws of harmful requests."""
    rows = rows[rows["requests"] == "harmful"]
    wide = rows.pivot(index="setting", columns="measure", values="rate")
    wide = wide.rename(columns={word: outcome for outcome, word in NATURAL.items()})
    ends = rows[rows["measure"] == "refused"].set_index("setting")[["low", "high"]]
    return ends.join(wide).reset_index()


def outcomes_by_family(rows: pd.DataFrame) -> pd.DataFrame:
    """What the organism does, beside its own images, with each family of harmful requests.

    A family's verbs are *answered beside images* in training where they have harmless objects too.

    Args:
        rows: ``setting, kind, task, query, outcome`` of the test split's responses.
    """
    own = rows[(rows["setting"] == CONDITION_NAMES["own"]) & (rows["task"] == "harmful")]
    requests = averaged(own)["query"].map(find_request).dropna()
    own = own.loc[requests.index].assign(family=[request.family for request in requests])
    counts = own.groupby("family")["outcome"].value_counts().unstack(fill_value=0)
    shares = counts.div(counts.sum(axis=1), axis=0).reindex(columns=list(OUTCOMES), fill_value=0.0)
    text = shares.map("{:.1%}".format).rename(columns={"complied": "carried out"})
    text.insert(0, "answered beside images", ["yes" if f in HARMLESS else "no" for f in text.index])
    return text.assign(requests=counts.sum(axis=1)).reset_index()


def _store_tables(runs: list[Path], sources: dict[str, str]) -> None:
    """Update the stored tables that the runs have.

    All tables are read before any is written, so that an unreadable one changes nothing.
    """
    tables = {
        STORED / f"{name}.csv": [
            best_alphas(run) if name == "alphas_by_model" else stored_table(run, source)
            for run in runs
            if (run / "tables" / f"{source}.parquet").is_file()
        ]
        for name, source in sources.items()
    }
    for path, parts in tables.items():
        if parts:
            rows = beside_others(path, pd.concat(parts))
            with replacing(path) as draft:
                rows.to_csv(draft, index=False, float_format="%.5g")


def stored_table(folder: Path, name: str) -> pd.DataFrame:
    """A run's table with the columns ``model``, ``fingerprint`` and ``rule`` (of choosing alpha).

    Raises:
        InputError: the notebook that makes the table has not reached its end.
    """
    number = name.partition("_")[0]
    # A notebook writes its manifest last. Without one, the table may be an earlier attempt's.
    if not [read_json(each) for each in (folder / "manifests").glob(f"{number}_*.json")]:
        raise InputError(f"{folder}: notebook {number} has not run to its end; run it again")
    rows = read_table(folder / "tables" / f"{name}.parquet")
    # The run's name stands for the model: stored tables hold no paths of a machine.
    fingerprint = read_json(folder / "run.json")["fingerprint"]
    return rows.assign(model=folder.name, fingerprint=fingerprint, rule=RULE)


def best_alphas(folder: Path) -> pd.DataFrame:
    """The alphas that the rule chooses on a run's curves, and how large each edit then is.

    Returns:
        Of the two levels of :data:`LEVELS`: ``method, alpha, refused before, refused, relative
        shift`` (the vector's length beside the states'), ``dose`` (alpha times that), and the
        columns of :func:`stored_table`.
    """
    curves, sizes = (stored_table(folder, f"04_{name}") for name in ("curves", "alpha_table"))
    rows = []
    for method, these in curves[curves["method"].isin(LEVELS)].groupby("method"):
        alpha = choose_alpha(these)
        refused = these[these["measure"] == "refused"].set_index("alpha")["rate"]
        largest = sizes[sizes["method"] == method].nlargest(1, "alpha").iloc[0]
        shift = largest["dose"] / largest["alpha"]  # the least rounded
        rows.append((method, alpha, refused[0.0], refused[alpha], shift, alpha * shift))
    names = ["method", "alpha", "refused before", "refused", "relative shift", "dose"]
    same = curves[["model", "fingerprint", "rule"]].iloc[0]
    return pd.DataFrame(rows, columns=names).assign(**same)


def beside_others(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    """New rows with the stored rows of all other models, sorted by model.

    Args:
        path: of the stored table; it need not exist.
        new: rows with the column ``model``.
    """
    parts = [new]
    if path.exists():
        old = read_csv(path)
        parts.append(old[~old["model"].isin(new["model"])])
    return pd.concat(parts).sort_values("model", kind="stable")


def write_section(path: Path, name: str, text: str) -> None:
    """Replace a section of a Markdown file, between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    Args:
        path: of the file.
        name: of the section.
        text: the section's new text, with a line break at its end.

    Raises:
        InputError: the file has no such section, or cannot be written.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    _, mark, after = rest.partition(end)
    if not mark:
        raise InputError(f"{path}: no section {name} (between {start.strip()} and {end})")
    with replacing(path) as draft:
        draft.write_text(before + start + text + end + after, encoding="utf-8")
