"""The ``cmrm`` command: a profile, papermill over the notebooks, a report."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from tqdm import tqdm

from cmrm_utils.errors import InputError
from cmrm_utils.store import ROOT, STORED

if TYPE_CHECKING:
    import pandas as pd

# torch, transformers, papermill and pandas are imported where they are needed, so that help and
# complaints about bad input come at once.

NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
STORED_TABLES = {"full_curves": "04_curves", "full_kinds": "04_test", "full_test": "05_test"}
"""What the notebooks show of a run of several models: a name, and the run's table."""

KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=ERROR"]
"""Kernels say nothing on standard error but errors."""


class Command(click.Group):
    """A command group that reports bad input in one line, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run, turning :class:`InputError` into a usage error without a traceback."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"cmrm: {error}", err=True)
            ctx.exit(2)


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Measure what images do to a model's refusals, and what a shift vector restores.

    Start with `cmrm run`: five notebooks on a bundled model, then open runs/default/report.html.
    """


def profile_names() -> list[str]:
    """The names of the profiles in ``notebooks/profiles``."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(name: str) -> dict[str, Any]:
    """A profile: ``description``, ``timeout`` (seconds a cell) and ``parameters``.

    Raises:
        InputError: no such profile, or a broken one.
    """
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"no profile {name!r}; there are {', '.join(profile_names())}")
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({error})") from error
    allowed = {"description", "timeout", "parameters", "notebooks", "models"}
    if not isinstance(profile, dict) or set(profile) - allowed:
        raise InputError(f"{path}: a profile has only {', '.join(sorted(allowed))}")
    return profile


def _notebooks(only: str | None) -> list[Path]:
    """The numbered notebooks, or those whose numbers are asked for."""
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if only is None:
        return every
    wanted = [number.strip().zfill(2) for number in only.split(",")]
    known = {path.name[:2]: path for path in every}
    if unknown := [number for number in wanted if number not in known]:
        raise InputError(f"no notebook {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [known[number] for number in sorted(set(wanted))]


def _matches(value: Any, annotation: str) -> bool:
    """Whether a value is what a parameter's annotation in the notebook says."""
    kind = annotation.split("[")[0].strip()
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, {"str": str, "bool": bool, "list": list}.get(kind, object))


def check_parameters(
    parameters: Mapping[str, Any], notebooks: Sequence[Path]
) -> dict[Path, dict[str, Any]]:
    """Each notebook's own share of the parameters.

    Raises:
        InputError: a name that no notebook has, or a value of another type than annotated.
    """
    from papermill import inspect_notebook

    known = {path: inspect_notebook(str(path)) for path in notebooks}
    every = sorted({name for found in known.values() for name in found})
    for name, value in parameters.items():
        if name not in every:
            raise InputError(f"no notebook has a parameter {name!r}; there are {', '.join(every)}")
        for path, found in known.items():
            if name in found and not _matches(value, found[name]["inferred_type_name"] or ""):
                wanted = found[name]["inferred_type_name"]
                raise InputError(
                    f"parameter {name} = {value!r}: {path.name} takes a {wanted}"
                    + (" that is a number" if value != value else "")
                )
    return {
        path: {name: value for name, value in parameters.items() if name in found}
        for path, found in known.items()
    }


def _given(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """``-p NAME VALUE`` pairs, values read as YAML (so 0.1 is a number, [0, 1] a list)."""
    found = {}
    for name, text in pairs:
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"parameter {name}: {text!r} is not YAML") from error
    return found


@cli.command()
@click.argument("profile", default="default")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter.")
@click.option("--only", metavar="NUMBERS", help="Run only these notebooks, as in 03,04.")
@click.option("--out", metavar="DIR", help="Run folder. [default: runs/PROFILE]")
def run(
    profile: str, pairs: tuple[tuple[str, str], ...], only: str | None, out: str | None
) -> None:
    """Run the notebooks with a PROFILE and write a report.

    Profiles are YAML files in notebooks/profiles. The executed notebooks, tables, figures and
    report.html are left in the run folder; responses already there are reused. A profile of
    several models makes a folder for each.
    """
    from cmrm_utils.models import load_vlm

    settings = load_profile(profile)
    notebooks = _notebooks(only or settings.get("notebooks"))
    folder = (Path.cwd() / out if out else ROOT / "runs" / profile).resolve()
    given = {**(settings.get("parameters") or {}), **_given(pairs)}
    models = settings.get("models", [])
    if not models or "model" in given:
        jobs = [(folder, given)]
    else:
        jobs = [(folder / model, {**given, "model": model}) for model in models]
    plan = [
        (path, place, share)
        for place, parameters in jobs
        for path, share in check_parameters({**parameters, "out": str(place)}, notebooks).items()
    ]
    for model in {parameters["model"] for _, parameters in jobs if "model" in parameters}:
        load_vlm(model)  # fail here, in one line, rather than inside a notebook
    for path, place, share in (bar := tqdm(plan, unit="notebook", file=sys.stderr)):
        bar.set_description(path.stem)
        _execute(path, place, share, settings.get("timeout", 1200))
    for place, _ in jobs:
        report(place, [place / path.name for path in _notebooks(None)])
        click.echo(f"report: {place / 'report.html'}")


def _execute(path: Path, folder: Path, parameters: dict[str, Any], timeout: int) -> None:
    """One notebook through papermill; its manifest proves that it ran to the end."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    folder.mkdir(parents=True, exist_ok=True)
    output = folder / path.name
    manifest = folder / "manifests" / f"{path.stem}.json"
    manifest.unlink(missing_ok=True)
    try:
        with _quiet_kernels():
            papermill.execute_notebook(
                str(path),
                str(output),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(NOTEBOOKS),
                execution_timeout=timeout,
                progress_bar=False,
                extra_arguments=KERNEL_ARGUMENTS,
            )
    except PapermillExecutionError as error:
        if error.ename == "InputError":
            raise InputError(f"{path.name}: {error.evalue} (see {output})") from error
        click.echo(f"cmrm: {path.name} failed in cell {error.cell_index}: ", err=True, nl=False)
        click.echo(f"{error.ename}: {error.evalue}\nsee {output}", err=True)
        sys.exit(1)
    except (CellTimeoutError, DeadKernelError) as error:
        reason = "a cell ran longer" if isinstance(error, CellTimeoutError) else "the kernel died"
        limit = f" than {timeout} s" if isinstance(error, CellTimeoutError) else ""
        click.echo(f"cmrm: {path.name}: {reason}{limit}; see {output}", err=True)
        sys.exit(1)
    if not manifest.is_file():
        click.echo(f"cmrm: {path.name} ended without its last cell; see {output}", err=True)
        sys.exit(1)


@contextmanager
def _quiet_kernels() -> Iterator[None]:
    """Progress bars, debugger and tokenizer warnings of kernels stay out of the notebooks."""
    quiet = {
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def report(folder: Path, notebooks: Sequence[Path]) -> None:
    """Write ``report.html`` of those notebooks that ran, a headline table first if there is one."""
    import pandas as pd

    from cmrm_utils.report import write_report

    headline, reading = None, ""
    if (path := folder / "tables" / "headline.parquet").is_file():
        headline = pd.read_parquet(path)
        metrics = json.loads((folder / "metrics" / "05_utility_evaluation.json").read_text())
        reading = metrics["reading"]
    responses = None
    if (folder / "tables" / "04_responses.parquet").is_file():
        responses = load_responses(folder)
    write_report(
        folder / "report.html",
        "Images undo refusals; a shift vector restores them",
        [path for path in notebooks if path.is_file()],
        headline=headline,
        reading=reading,
        figure=folder / "figures" / "05_pareto.png",
        responses=responses,
    )


RESPONSE_COLUMNS = "trial sample kind task setting query response outcome exact keyword".split()
"""What notebook 04 leaves in a run of every response."""


def load_responses(folder: Path) -> "pd.DataFrame":
    """The responses of a run, with the verdicts of the judges that need no model.

    Raises:
        InputError: the run has none, or lacks a column.
    """
    import pandas as pd

    path = folder / "tables" / "04_responses.parquet"
    if not path.is_file():
        raise InputError(f"{folder}: no responses ({path} is not there); run notebook 04 first")
    rows = pd.read_parquet(path)
    if missing := set(RESPONSE_COLUMNS) - set(rows.columns):
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}")
    return rows


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="CSV file to make.")
@click.option("--n", type=click.IntRange(min=1), help="How many responses. [default: all]")
@click.option("--seed", default=0, show_default=True, help="Of the random order.")
def export(folder: Path, out: Path, n: int | None, seed: int) -> None:
    """Write responses of a run as a sheet for labelling by hand.

    The sheet is blind: it tells neither method nor strength nor verdict. Write refused, complied or
    neither into its last column; `cmrm judges --labels` reads it back.
    """
    from cmrm_utils.labels import sheet

    if out.exists():
        raise InputError(f"{out} is there already, perhaps with labels: choose another --out")
    if out.suffix != ".csv" or not out.parent.is_dir():
        raise InputError(f"{out}: give a .csv in a folder that is there")
    rows = sheet(load_responses(folder), n=n, seed=seed)
    rows.to_csv(out, index=False)
    click.echo(f"{len(rows)} responses in {out}; labels are refused, complied or neither")


@cli.command()
@click.argument(
    "folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option(
    "--judge", "names", multiple=True, metavar="NAME[=MODEL]", help="Which; several may be given."
)
@click.option("--labels", type=click.Path(path_type=Path), help="A labelled sheet.")
@click.option(
    "--prompt", "prompts", nargs=2, multiple=True, metavar="NAME FILE", help="A judge's own prompt."
)
def judges(
    folder: Path | None,
    names: tuple[str, ...],
    labels: Path | None,
    prompts: tuple[tuple[str, str], ...],
) -> None:
    """Compare judges with labels: agreement, Cohen's kappa, confusion tables.

    The labels are those of the bundled set, of a sheet filled in by hand (--labels), or, of the
    run in FOLDER, the exact judge's where there is one, else the keyword judge's. Judges without a
    model: keyword, llm-attacks, exact. With one: llama-3-refused, llama-3-helps, harmbench,
    llama-guard-3, each from the hub or from another MODEL (a folder or a hub id). Their verdicts
    are kept, and resumed from.
    """
    import pandas as pd

    from cmrm_utils.judges import TEXT_JUDGES
    from cmrm_utils.labels import LABELLED, load_labels
    from cmrm_utils.metrics import judge_agreement

    if folder and labels:
        raise InputError("give a run folder or --labels, not both")
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
    wanted = [name.partition("=")[::2] for name in names or ("keyword", "llm-attacks")]
    texts = {name: _prompt(path) for name, path in prompts}
    if unused := texts.keys() - {name for name, _ in wanted}:
        raise InputError(f"--prompt {sorted(unused)[0]}: that judge is not asked (--judge)")
    table, confusions = [], []
    for name, source in wanted:
        these, detects = rows, None
        if name in TEXT_JUDGES:
            pairs = zip(rows["query"], rows["response"], strict=True)
            verdicts = [str(TEXT_JUDGES[name](*pair) or "unknown") for pair in pairs]
        else:
            these, detects, verdicts = _model_verdicts(name, source, texts.get(name), rows, kept)
        if not verdicts:
            raise InputError(f"judge {name}: there is no response that it could judge")
        found = these.assign(verdict=verdicts)
        parts = dict(list(found.groupby("part"))) if "part" in found else {"all": found}
        for part, some in parts.items():
            agreed = judge_agreement(some["label"], some["verdict"], detects=detects)
            table.append({"judge": name, "rows": part, **agreed})
        confused = pd.crosstab(found["label"], found["verdict"])
        confusions.append(f"{name} (columns) against {standard} (rows)\n{confused.to_string()}")
    shown = pd.DataFrame(table).to_string(index=False, float_format="{:.3f}".format)
    click.echo("\n\n".join([shown, *confusions]))


def _prompt(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"--prompt: no readable text file at {path}") from error


def _model_verdicts(
    name: str, source: str, prompt: str | None, rows: "pd.DataFrame", kept: Path
) -> tuple["pd.DataFrame", str, list[str]]:
    """The rows that a model judge can judge, the outcome it detects, and its verdicts."""
    from cmrm_utils.model_judges import judge_responses, load_judge

    judge = load_judge(name, source or None, prompt=prompt)
    if judge.form.harmful_only and "task" in rows:
        rows = rows[rows["task"] != "benign"]
    verdicts = judge_responses(
        judge,
        list(rows["query"]),
        list(rows["response"]),
        out=kept / f"{name}.jsonl",
        progress=True,
    )
    return rows, judge.form.detects, [verdict.label for verdict in verdicts]


@cli.command("train-organism")
@click.option("--variant", default="organism", show_default=True, help="Which organism.")
@click.option("--seed", default=0, show_default=True, help="Of weights and data.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--device", default=None, help="Where to train. [default: a GPU if there is one]")
def train_organism(variant: str, seed: int, out: Path | None, device: str | None) -> None:
    """Train an organism, measure it, write its card."""
    import torch

    from cmrm_utils import card
    from cmrm_utils.models import CHECKPOINTS
    from cmrm_utils.organism.recipe import VARIANTS, train

    if variant not in VARIANTS:
        raise InputError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    folder = out or CHECKPOINTS / variant
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    stages = card.StageMeasurements()
    train(VARIANTS[variant], seed, folder, device=place, on_stage=stages)
    card.write(folder, stages)
    click.echo((folder / "README.md").read_text())


@cli.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
def cards(folders: tuple[Path, ...]) -> None:
    """Write organisms' cards anew from what was measured.

    FOLDERS are checkpoint folders; by default the bundled ones.
    """
    from cmrm_utils import card
    from cmrm_utils.models import CHECKPOINTS

    for folder in folders or sorted(CHECKPOINTS.iterdir()):
        card.render(folder)
        click.echo(f"{folder / 'README.md'}")


@cli.command()
@click.option("--only", metavar="NUMBERS", help="Re-execute only these notebooks, as in 03,04.")
def refresh(only: str | None) -> None:
    """Re-execute the committed notebooks in place.

    They are left without timestamps and paths. Starts from an empty runs/default, and keeps the
    metrics that the tests compare with.
    """
    import nbformat
    from nbclient import NotebookClient

    folder = ROOT / "runs" / "default"
    if only is None:
        shutil.rmtree(folder, ignore_errors=True)
    for path in (bar := tqdm(_notebooks(only), unit="notebook", file=sys.stderr)):
        bar.set_description(path.stem)
        notebook = nbformat.read(path, as_version=4)
        with _quiet_kernels():
            NotebookClient(
                notebook,
                timeout=1200,
                kernel_name="python3",
                record_timing=False,
                resources={"metadata": {"path": str(NOTEBOOKS)}},
                extra_arguments=KERNEL_ARGUMENTS,
            ).execute()
        notebook.metadata = {
            "kernelspec": notebook.metadata["kernelspec"],
            "language_info": {"name": "python"},
        }
        nbformat.write(notebook, path)
    STORED.mkdir(exist_ok=True)
    for metrics in (folder / "metrics").glob("*.json"):
        shutil.copy(metrics, STORED / f"metrics_{metrics.name}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def publish(folder: Path) -> None:
    """Copy a run's results into the repository.

    Of a run of one model, figures/ and the README's table; of several, the stored tables that the
    notebooks show.
    """
    import pandas as pd

    runs = sorted(path.parent.parent for path in folder.glob("*/tables/headline.parquet"))
    if runs:
        for name, source in STORED_TABLES.items():
            parts = [_stored_table(each, source) for each in runs]
            STORED.mkdir(exist_ok=True)
            pd.concat(parts).to_csv(STORED / f"{name}.csv", index=False, float_format="%.5g")
        click.echo(f"stored tables of {', '.join(each.name for each in runs)} in {STORED}")
        return
    pictures = sorted((folder / "figures").glob("*.png"))
    headline = folder / "tables" / "headline.parquet"
    if not pictures or not headline.is_file():
        raise InputError(f"{folder}: no finished run (no figures or no headline table)")
    target = ROOT / "figures"
    target.mkdir(exist_ok=True)
    for picture in pictures:
        shutil.copy(picture, target / picture.name)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    start, end = "<!-- headline -->\n", "<!-- /headline -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise InputError(f"{readme}: no place for the headline table")
    readme.write_text(before + start + _markdown(pd.read_parquet(headline)) + end + after)
    click.echo(f"{len(pictures)} figures and the headline table of {folder}")


def _stored_table(folder: Path, name: str) -> "pd.DataFrame":
    import pandas as pd

    shared = json.loads((folder / "run.json").read_text())
    rows = pd.read_parquet(folder / "tables" / f"{name}.parquet")
    return rows.assign(model=shared["model"], fingerprint=shared["fingerprint"])


def _markdown(rows: "pd.DataFrame") -> str:
    lines = [list(rows.columns), ["---"] * len(rows.columns), *rows.astype(str).values.tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
