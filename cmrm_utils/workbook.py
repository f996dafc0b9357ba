"""The ``cmrm`` command: a profile, papermill over the notebooks, a report."""

import json
import os
import shutil
import sys
from ast import literal_eval
from collections import Counter
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

    from cmrm_utils.sets import PublicSet

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


class AnyCase(click.Group):
    """A command group whose commands may be written in capitals."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, whatever its case."""
        return super().get_command(ctx, name.lower())


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

    # A profile may set what only notebooks left out by --only would take.
    known = {path: inspect_notebook(str(path)) for path in {*notebooks, *_notebooks(None)}}
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
        path: {name: value for name, value in parameters.items() if name in known[path]}
        for path in notebooks
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
@click.option("--shard", metavar="I/N", help="Only respond to the I-th of N shares, no notebooks.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where responses are made.",
)
@click.option("--workers", default=2, show_default=True, help="Of --engine ray; each has a model.")
def run(
    profile: str,
    pairs: tuple[tuple[str, str], ...],
    only: str | None,
    out: str | None,
    shard: str | None,
    engine: str,
    workers: int,
) -> None:
    """Run the notebooks with a PROFILE and write a report.

    Profiles are YAML files in notebooks/profiles. The executed notebooks, tables, figures and
    report.html are left in the run folder; responses already there are reused. A profile of
    several models makes a folder for each.

    With --shard the model only responds, so that several machines share the work; run it for
    every share, again for those it says are waiting, and without --shard at last.
    """
    from cmrm_utils.shards import merge

    settings, notebooks, jobs = _jobs(profile, pairs, only, out)
    plan = [
        (path, place, share)
        for place, parameters in jobs
        for path, share in check_parameters({**parameters, "out": str(place)}, notebooks).items()
    ]
    if shard is not None:
        _work(plan, shard)
        return
    if engine == "ray":
        from cmrm_utils.ray_engine import respond

        for place in dict.fromkeys(place for _, place, _ in plan):
            respond(place, _experiments(plan, place), workers)
    for place, _ in jobs:
        if count := merge(place):
            click.echo(f"{place}: {count} responses of shards brought in", err=True)
    for path, place, share in (bar := tqdm(plan, unit="notebook", file=sys.stderr)):
        bar.set_description(path.stem)
        _execute(path, place, share, settings.get("timeout", 1200))
    for place, _ in jobs:
        report(place, [place / path.name for path in _notebooks(None)])
        click.echo(f"report: {place / 'report.html'}")


def _jobs(
    profile: str, pairs: Sequence[tuple[str, str]], only: str | None, out: str | None
) -> tuple[dict[str, Any], list[Path], list[tuple[Path, dict[str, Any]]]]:
    """A profile, its notebooks, and the run folder and parameters of each of its models."""
    from cmrm_utils.data import load_samples, located
    from cmrm_utils.models import find_model

    settings = load_profile(profile)
    notebooks = _notebooks(only or settings.get("notebooks"))
    folder = (Path.cwd() / out if out else ROOT / "runs" / profile).resolve()
    given = {**(settings.get("parameters") or {}), **_given(pairs)}
    if "model" in given:
        given["model"] = _located(given["model"])
    if isinstance(given.get("data"), str):
        given["data"] = located(given["data"])  # notebooks run in a folder of their own
    check_parameters(given, notebooks)
    models = settings.get("models", [])
    if not models or "model" in given:
        jobs = [(folder, given)]
    else:
        jobs = [(folder / model, {**given, "model": model}) for model in models]
    for model in {parameters["model"] for _, parameters in jobs if "model" in parameters}:
        find_model(model)  # fail here, in one line, rather than inside a notebook
    if "data" in given:
        load_samples(given["data"])  # likewise
    return settings, notebooks, jobs


Plan = Sequence[tuple[Path, Path, dict[str, Any]]]
"""Notebooks to run: the notebook, the run's folder, and the parameters that it has."""


def _experiments(plan: Plan, place: Path) -> list[tuple[str, dict[str, Any]]]:
    """The notebooks of one run by number, with all of their parameters, defaults among them."""
    from papermill import inspect_notebook

    found = []
    for path, folder, share in plan:
        if folder == place:
            defaults = {
                name: literal_eval(known["default"])
                for name, known in inspect_notebook(str(path)).items()
            }
            found.append((path.name[:2], {**defaults, **share}))
    return found


def _work(plan: Plan, text: str) -> None:
    """Respond to one shard of every run in the plan."""
    from cmrm_utils.shards import Shard, open_worker

    shard = Shard.parse(text)
    for place in dict.fromkeys(place for _, place, _ in plan):
        experiments = _experiments(plan, place)
        waiting = open_worker(place, experiments[0][1], shard).work(experiments)
        state = f"waiting for {'; '.join(waiting)}; run it again after them" if waiting else "done"
        click.echo(f"{place}, shard {text}: {state}")


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
    responses = None
    if (folder / "tables" / "04_responses.parquet").is_file():
        responses = load_responses(folder)
    write_report(
        folder / "report.html",
        "What images do to refusals, and what a shift vector restores",
        [path for path in notebooks if path.is_file()],
        headline=headline,
        reading=reading,
        figure=folder / "figures" / "05_pareto.png",
        responses=responses,
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


@cli.group(cls=AnyCase)
def data() -> None:
    """Say what data there is, what a profile needs, and how to get what is missing."""


@data.command("list")
def data_list() -> None:
    """Every named set: how many samples, from where, under which licence, with what in it."""
    from cmrm_utils.sets import SETS, data_home

    home = data_home()
    click.echo("organism: the bundled model's own world; harmless, nothing to download\n")
    for public in SETS.values():
        here = ", local copy" if (home / public.name).is_dir() else ""
        click.echo(f"{public.name}: {public.count} samples{here}")
        _describe(public)
        click.echo()
    click.echo(f"local copies and COCO images: {home} (or set CMRM_DATA)")


@data.command("check")
@click.argument("name", metavar="PROFILE_OR_DATA")
@click.option("--fetch", is_flag=True, help="Download files and COCO images that are missing.")
def data_check(name: str, fetch: bool) -> None:
    """See that the data of a profile, a set, a file or a union is all there and readable.

    Every file is read and every image decoded. What is missing is named, with the command that gets
    it; the exit code is then 1. Nothing is downloaded but with --fetch.
    """
    from cmrm_utils.data import DATASETS, parts
    from cmrm_utils.sets import data_home

    profiles = {known.lower(): known for known in profile_names()}
    if name.lower() in profiles:
        parameters = load_profile(profiles[name.lower()]).get("parameters") or {}
        wanted = str(parameters.get("data", "organism"))
        click.echo(f"profile {profiles[name.lower()]}: data {wanted}\n")
    else:
        wanted = name
    complete = True
    for part, _ in parts(wanted):
        part = part.lower() if part.lower() in DATASETS else part
        complete &= _check_part(part, data_home(), fetch)
    if not complete:
        sys.exit(1)
    click.echo("all there")


def _describe(public: "PublicSet") -> None:
    click.echo(f"  content  {public.note}")
    click.echo(f"  from     {public.source}")
    click.echo(f"  licence  {public.licence}\n  size     {public.size}")


def _check_part(part: str, home: Path, fetch: bool) -> bool:
    """Print what is to be said of a set or file; whether it can be used."""
    from cmrm_utils import coco
    from cmrm_utils.data import load_samples
    from cmrm_utils.sets import SETS, missing_images, read_set

    public = SETS.get(part)
    if public is None:
        found = load_samples(part)
        samples = found if isinstance(found, list) else [s for each in found.values() for s in each]
    else:
        click.echo(part)
        _describe(public)
        try:
            samples = list(read_set(part, home, download=fetch))
        except InputError as error:
            click.echo(f"  MISSING  {error}\n")
            return False
        if len(samples) != public.count:
            click.echo(f"  NOTE     {len(samples)} samples, where {public.count} were expected")
        if fetch:
            coco.fetch(missing_images(samples, home).values(), home / "coco")
        missing = missing_images(samples, home)
        gone = coco.absent(home / "coco")
        for sample, image in missing.items():
            if image in gone:
                click.echo(f"  LEFT OUT {sample}: {image} ({gone[image]})")
        if waiting := {image for image in missing.values() if image not in gone}:
            click.echo(f"  MISSING  {len(waiting)} COCO images, not in {home / 'coco'}")
            click.echo(f"  get them: cmrm data check {part} --fetch\n")
            return False
        samples = [sample for sample in samples if sample.id not in missing]
    for sample in tqdm(samples, desc=part, unit="sample", delay=2, leave=False):
        sample.load_image()
    counts = Counter(sample.kind or "(no kind)" for sample in samples)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    click.echo(f"  there    {part}: {len(samples)} samples: {kinds}\n")
    return True


@cli.command()
@click.option("--model", default="organism", show_default=True, help="Bundled, folder or hub id.")
@click.option("--anchors", required=True, metavar="DATA", help="A file (all its rows), or a set.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Safetensors file.")
@click.option("--task", "tasks", multiple=True, help="Only anchors of this task (harmful ...).")
@click.option("--meaningless", default="blank", show_default=True, help="Which image is shown.")
@click.option("--level", type=click.Choice(["dataset", "sample"]), default="dataset")
@click.option("--estimator", type=click.Choice(["mean", "pc1"]), default="mean")
@click.option("--scale", type=click.Choice(["raw", "unit", "std"]), default="raw")
def extract(
    model: str,
    anchors: str,
    out: Path,
    tasks: tuple[str, ...],
    meaningless: str,
    level: Any,
    estimator: Any,
    scale: Any,
) -> None:
    """Take shift vectors of a MODEL on ANCHORS and save them.

    Of a set, or a union of sets and files, the anchors split is taken; of one file, every row.
    """
    from cmrm_utils.data import load_samples, take

    found = load_samples(anchors)
    samples = found["anchors"] if isinstance(found, dict) else found
    if tasks:
        samples = take(samples, None, *tasks)
    if not samples:
        raise InputError(f"{anchors}: no samples in its anchors split")

    from cmrm_utils.models import load_vlm
    from cmrm_utils.trials import IMAGES
    from cmrm_utils.vectors import extract_shift

    if meaningless not in IMAGES:
        raise InputError(f"no image {meaningless!r}; one of {', '.join(IMAGES)}")
    vectors = extract_shift(
        load_vlm(model),
        samples,
        meaningless=meaningless,
        level=level,
        estimator=estimator,
        scale=scale,
        progress=True,
    )
    vectors.save(out)
    low, high = vectors.norms.min(), vectors.norms.max()
    click.echo(
        f"{out}: {level}-level vectors of {len(samples)} anchors, "
        f"{vectors.values.shape[-2]} layers x {vectors.values.shape[-1]}, "
        f"norms {low:.3g} to {high:.3g}"
    )


def load_responses(folder: Path) -> "pd.DataFrame":
    """The responses of a run, with the verdicts of the judges that need no model.

    Raises:
        InputError: the run has none, or lacks a column.
    """
    import pandas as pd

    from cmrm_utils.labels import RESPONSE_COLUMNS

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
