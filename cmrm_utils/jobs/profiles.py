"""Profiles, and the numbered notebooks that they set the parameters of."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator

from cmrm_utils.errors import InputError
from cmrm_utils.paths import NOTEBOOKS, PROFILES, ROOT
from cmrm_utils.studies.parameters import Count, declared, fields, unknown, validated

CORE = "05"
"""The last of the notebooks that a profile runs which names none: those beyond are asked for."""


APPENDIX = "09"
"""The notebook that asks no model and shows stored tables: no run takes it, ``cmrm refresh``
executes it with the others."""


KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=ERROR"]
"""Kernels say nothing on standard error but errors."""


def _numbers(value: Any) -> str:
    """Numbers of notebooks as one text; YAML reads an unquoted 06 as 6."""
    several = value if isinstance(value, list) else [value]
    if not several or not all(type(each) in (int, str) for each in several):
        raise ValueError('write numbers of notebooks, as in [6, 7] or "06,07"')
    return ",".join(map(str, several))


def _models(value: Any) -> Any:
    if not isinstance(value, list) or not value:
        raise ValueError("write a list of models, as in [organism, organism-seed1]")
    return value


KEYS = {
    "description": str,
    "timeout": Count,
    "parameters": dict[str, Any] | None,
    "notebooks": Annotated[str, BeforeValidator(_numbers)],
    "models": Annotated[list[str], BeforeValidator(_models)],
}
"""What a profile may have, and of which type."""


def profile_names() -> list[str]:
    """The names of the profiles in ``notebooks/profiles``."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(name: str) -> dict[str, Any]:
    """A profile: those of :data:`KEYS` that it has.

    Args:
        name: of a file in ``notebooks/profiles``, or the path of one that ends in ``.yaml``.

    Raises:
        InputError: no such profile, or a broken one.
    """
    given = name.endswith(".yaml")
    path = Path(name) if given else PROFILES / f"{name}.yaml"
    if not given and name not in profile_names():
        raise unknown("no profile", name, profile_names())
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no profile that can be read ({error})") from error
    kind = fields("a profile has no", KEYS, total=False)
    found: dict[str, Any] = validated(kind, profile, f"profile {path}")
    return found


def numbered_notebooks(only: str | None, *, appendix: bool = False) -> list[Path]:
    """The numbered notebooks, or those whose numbers are asked for.

    Args:
        only: numbers, as in ``03,04``; None for all.
        appendix: whether :data:`APPENDIX` is among them.
    """
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    every = [path for path in every if appendix or path.name[:2] != APPENDIX]
    if only is None:
        return every
    wanted = [number.strip().zfill(2) for number in only.split(",")]
    known = {path.name[:2]: path for path in every}
    if missing := [number for number in wanted if number not in known]:
        raise InputError(f"no notebook {', '.join(missing)}; there are {', '.join(sorted(known))}")
    return [known[number] for number in sorted(set(wanted))]


def check_parameters(
    parameters: Mapping[str, Any], notebooks: Sequence[Path]
) -> dict[Path, dict[str, Any]]:
    """Each notebook's own share of the parameters, numbers that were written as text made numbers.

    Raises:
        InputError: a name that no notebook has, or a value that a notebook cannot take
            (:meth:`cmrm_utils.studies.parameters.Parameter.check`).
    """
    # A profile may set what only notebooks left out by --only would take.
    known = {path: declared(path) for path in [*notebooks, *numbered_notebooks(None)]}
    every = sorted({name for found in known.values() for name in found})
    for name in parameters:
        if name not in every:
            raise unknown("no notebook has a parameter", name, every)
    shares = {
        path: {
            name: found[name].check(value) for name, value in parameters.items() if name in found
        }
        for path, found in known.items()
    }
    return {path: shares[path] for path in notebooks}


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
        found = []
        for path, given in self.notebooks.items():
            defaults = {name: one.default for name, one in declared(path).items()}
            found.append((path.name[:2], {**defaults, **given}))
        return found


def planned_jobs(
    profile: str, pairs: Sequence[tuple[str, str]], only: str | None, out: str | None
) -> tuple[dict[str, Any], list[Job]]:
    """What a profile runs, once it is sure that its parameters, models and data are there.

    Args:
        profile: as :func:`load_profile` takes it.
        pairs: parameters that take the place of its own, as text.
        only: numbers of notebooks, as in ``03,04``; None for the profile's own, or those up
            to :data:`CORE`.
        out: the run folder; None for ``runs/`` and the profile's name.

    Returns:
        The profile, and a job for each of its models.

    Raises:
        InputError: no such profile, parameter, model or data; two models for one folder.
    """
    settings = load_profile(profile)
    asked = only or settings.get("notebooks")
    notebooks = [n for n in numbered_notebooks(asked) if asked or n.name[:2] <= CORE]
    name = Path(profile).name.removesuffix(".yaml")
    folder = (Path.cwd() / out if out else ROOT / "runs" / name).resolve()
    given = {**(settings.get("parameters") or {}), **given_parameters(pairs)}
    check_parameters(given, notebooks)  # at once, before torch is imported to look for models

    from cmrm_utils.data.load import load_samples
    from cmrm_utils.judges.reviews import Endpoint
    from cmrm_utils.loading import WHERE, find_model

    given = _all_located(given)
    models = [] if "model" in given else [_located(each) for each in settings.get("models", [])]
    places = [folder / _folder_name(model) for model in models]
    if twice := [place.name for i, place in enumerate(places) if place in places[:i]]:
        raise InputError(f"profile {profile}: two of its models would share the folder {twice[0]}")
    runs = [
        (place, {**given, "model": model}) for place, model in zip(places, models, strict=True)
    ] or [(folder, given)]
    jobs = [
        Job(place, check_parameters({**parameters, "out": str(place)}, notebooks))
        for place, parameters in runs
    ]
    loading = given.get("settings") or {}
    finding = {key: loading[key] for key in ("trust_remote_code", *WHERE) if key in loading}
    for _, parameters in runs:
        if "model" in parameters:  # fail here, in one line, rather than inside a notebook
            find_model(parameters["model"], **finding)
    if "data" in given:
        load_samples(given["data"])  # likewise
    if given.get("reviewer") and not Path(given["reviewer"]).is_dir():
        Endpoint.from_environment(given["reviewer"], given.get("reviewer_url", ""))  # likewise
    return settings, jobs


def _folder_name(model: str) -> str:
    """Of a model's run: the name of its own folder, or of the hub with ``--`` for the slash."""
    return Path(model).name if Path(model).is_absolute() else model.replace("/", "--")


def _all_located(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with all folders and files in full; notebooks run in a folder of their own.

    What is of another type than a place has is left for the check of the parameters.
    """
    from cmrm_utils.data.load import located

    found = dict(given)
    for name in ("model", "reviewer"):
        if isinstance(given.get(name), str):
            found[name] = _located(given[name])
    if isinstance(given.get("judges"), list):
        found["judges"] = [_judge(item) for item in given["judges"]]
    if isinstance(given.get("data"), str):
        found["data"] = located(given["data"])
    return found


def _judge(item: Any) -> Any:
    """A judge as a parameter, its folder and its prompt's file in full."""
    if isinstance(item, str):
        name, mark, source = item.partition("=")
        return f"{name}={_located(source)}" if mark else name
    if not isinstance(item, dict):
        return item
    found = dict(item)
    if isinstance(found.get("model"), str):
        found["model"] = _located(found["model"])
    if isinstance(found.get("prompt"), str):
        found["prompt"] = str(Path.cwd() / found["prompt"])
    return found


def _located(model: str) -> str:
    """A model's folder in full, since notebooks run in a folder of their own.

    It is looked for where the command runs, then in the repository; other names stay as they are.
    """
    from cmrm_utils.loading import organisms

    if model and model not in organisms():
        for place in (Path.cwd(), ROOT):
            if (place / model).is_dir():
                return str((place / model).resolve())
    return model
