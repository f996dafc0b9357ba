"""Profiles, and the numbered notebooks that they set the parameters of."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cmrm_utils.errors import InputError
from cmrm_utils.store import ROOT

NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"

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
