"""Profiles, and the numbered notebooks that they set the parameters of."""

import os
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cmrm_utils.errors import InputError
from cmrm_utils.store import ROOT

NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"

CORE = "05"
"""The last of the notebooks that a profile runs which names none: those beyond are asked for."""

KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=ERROR"]
"""Kernels say nothing on standard error but errors."""


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


def numbered_notebooks(only: str | None) -> list[Path]:
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
    known = {path: inspect_notebook(str(path)) for path in {*notebooks, *numbered_notebooks(None)}}
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


def given_parameters(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """``-p NAME VALUE`` pairs, values read as YAML (so 0.1 is a number, [0, 1] a list)."""
    found = {}
    for name, text in pairs:
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"parameter {name}: {text!r} is not YAML") from error
    return found


@contextmanager
def quiet_kernels() -> Iterator[None]:
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


@dataclass(frozen=True)
class Job:
    """One run of a profile: one model's.

    Attributes:
        folder: of the run.
        notebooks: which are run, and the parameters that each is given.
    """

    folder: Path
    notebooks: Mapping[Path, dict[str, Any]]

    @property
    def experiments(self) -> list[tuple[str, dict[str, Any]]]:
        """The notebooks by number, with all of their parameters, defaults among them."""
        from papermill import inspect_notebook

        found = []
        for path, given in self.notebooks.items():
            known = inspect_notebook(str(path))
            defaults = {name: literal_eval(one["default"]) for name, one in known.items()}
            found.append((path.name[:2], {**defaults, **given}))
        return found


def planned_jobs(
    profile: str, pairs: Sequence[tuple[str, str]], only: str | None, out: str | None
) -> tuple[dict[str, Any], list[Job]]:
    """What a profile runs, once it is sure that its parameters, models and data are there.

    Args:
        profile: its name.
        pairs: parameters that take the place of its own, as text.
        only: numbers of notebooks, as in ``03,04``; None for the profile's own, or those up
            to :data:`CORE`.
        out: the run folder; None for ``runs/`` and the profile's name.

    Returns:
        The profile, and a job for each of its models.

    Raises:
        InputError: no such profile, parameter, model or data.
    """
    from cmrm_utils.data import load_samples, located
    from cmrm_utils.models import WHERE, find_model

    settings = load_profile(profile)
    asked = only or settings.get("notebooks")
    notebooks = [n for n in numbered_notebooks(asked) if asked or n.name[:2] <= CORE]
    folder = (Path.cwd() / out if out else ROOT / "runs" / profile).resolve()
    given = {**(settings.get("parameters") or {}), **given_parameters(pairs)}
    if "model" in given:
        given["model"] = _located(given["model"])
    if given.get("reviewer"):
        given["reviewer"] = _located(given["reviewer"])
    if isinstance(given.get("judges"), list):
        given["judges"] = [_judge(item) for item in given["judges"]]
    if isinstance(given.get("data"), str):
        given["data"] = located(given["data"])  # notebooks run in a folder of their own
    models = settings.get("models", [])
    if not models or "model" in given:
        runs = [(folder, given)]
    else:
        runs = [(folder / model, {**given, "model": model}) for model in models]
    jobs = [
        Job(place, check_parameters({**parameters, "out": str(place)}, notebooks))
        for place, parameters in runs
    ]
    loading = given.get("settings") or {}
    finding = {key: loading[key] for key in ("trust_remote_code", *WHERE) if key in loading}
    for model in {parameters["model"] for _, parameters in runs if "model" in parameters}:
        # Fail here, in one line, rather than inside a notebook.
        find_model(model, **finding)
    if "data" in given:
        load_samples(given["data"])  # likewise
    return settings, jobs


def _judge(item: Any) -> Any:
    """A judge as a parameter, its folder and its prompt's file in full."""
    if isinstance(item, str):
        name, mark, source = item.partition("=")
        return f"{name}={_located(source)}" if mark else name
    if not isinstance(item, dict):
        return item
    found = dict(item)
    if "model" in found:
        found["model"] = _located(found["model"])
    if "prompt" in found:
        found["prompt"] = str(Path.cwd() / found["prompt"])
    return found


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
