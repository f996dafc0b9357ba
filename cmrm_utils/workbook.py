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
    return isinstance(
        value, {"str": str, "bool": bool, "list": list, "dict": dict}.get(kind, object)
    )


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
    from cmrm_utils.models import find_model

    settings = load_profile(profile)
    notebooks = _notebooks(only or settings.get("notebooks"))
    folder = (Path.cwd() / out if out else ROOT / "runs" / profile).resolve()
    given = {**(settings.get("parameters") or {}), **_given(pairs)}
    if "model" in given:
        given["model"] = _located(given["model"])
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
        find_model(model)  # fail here, in one line, rather than inside a notebook
    for path, place, share in (bar := tqdm(plan, unit="notebook", file=sys.stderr)):
        bar.set_description(path.stem)
        _execute(path, place, share, settings.get("timeout", 1200))
    for place, _ in jobs:
        report(place, [place / path.name for path in _notebooks(None)])
        click.echo(f"report: {place / 'report.html'}")


def _located(model: str) -> str:
    """A model's folder in full, since notebooks run in a folder of their own.

    It is looked for where the command runs, then in the repository; other names stay as they are.
    """
    from cmrm_utils.models import organisms

    if model not in organisms():
        for place in (Path.cwd(), ROOT):
            if (place / str(model)).is_dir():
                return str((place / str(model)).resolve())
    return model


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
    write_report(
        folder / "report.html",
        "Images undo refusals; a shift vector restores them",
        [path for path in notebooks if path.is_file()],
        headline=headline,
        reading=reading,
        figure=folder / "figures" / "05_pareto.png",
    )


@cli.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--tower", required=True, help="Folder or hub id of its vision tower.")
def convert(source: str, out: Path, tower: str) -> None:
    """Convert an original LLaVA checkpoint for transformers.

    SOURCE is a folder or a hub id in the format of LLaVA's own code: LLaVA-1.5, ShareGPT4V and
    VLGuard's models. OUT is the folder to make. Takes about 2 GB of memory beyond the largest file.

    \b
    cmrm convert Lin-Chen/ShareGPT4V-7B models/sharegpt4v-7b
      --tower Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12
    cmrm convert ys-zong/llava-v1.5-7b-Mixed models/vlguard-7b-mixed
      --tower openai/clip-vit-large-patch14-336
    """  # noqa: D301
    from cmrm_utils.convert import convert as make

    make(source, out, tower=tower)
    click.echo(f"{out}: load it with load_vlm({str(out)!r})")


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
