"""Profiles: which notebooks to run, with which parameters, on which models."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field

from cmrm_utils.errors import InputError
from cmrm_utils.paths import NOTEBOOKS, PROFILES, ROOT, organism_folders
from cmrm_utils.studies.parameters import KINDS, Count, declared, fields, unknown, validated

CORE = ("01", "05")
"""Numbers of the first and the last core notebook; a profile that names none runs these."""


APPENDIX = "10"
"""Number of the first notebook of the appendix: from it on they show stored tables, ask no model.

``cmrm run`` leaves them out; ``cmrm refresh`` executes them with the others.
"""


def _joined(value: int | str | list[int | str]) -> str:
    """Numbers of notebooks as one text, since YAML reads an unquoted 06 as 6."""
    return ",".join(map(str, value if isinstance(value, list) else [value]))


_Numbers = int | str | Annotated[list[int | str], Field(min_length=1)]


KEYS = {
    "description": str,
    "timeout": Count,
    "parameters": dict[str, Any] | None,
    "notebooks": Annotated[_Numbers, AfterValidator(_joined)],
    "models": Annotated[list[str], Field(min_length=1)],
}
"""The keys that a profile may have, with their types. None is required."""


def profile_names() -> list[str]:
    """The names of the profiles in ``notebooks/profiles``."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(name: str) -> dict[str, Any]:
    """Read and check a profile.

    Args:
        name: of a file in ``notebooks/profiles``, or a path that ends in ``.yaml``.

    Returns:
        Those of :data:`KEYS` that the profile has.

    Raises:
        InputError: no such profile, or a broken one.
    """
    is_path = name.endswith(".yaml")
    path = Path(name) if is_path else PROFILES / f"{name}.yaml"
    if not is_path and name not in profile_names():
        raise unknown("no profile", name, profile_names())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the profile cannot be read ({error})") from error
    profile = _read_yaml(text, str(path))
    return validated(fields("a profile has no", KEYS, total=False), profile, f"profile {path}")


class _Loader(yaml.SafeLoader):
    """Numbers as YAML 1.2 reads them: ``010`` is ten and not eight, ``1:30`` is text and not 90."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; of a key that comes twice, YAML's own would take the last value."""
        if twice := _repeated([str(key.value) for key, _ in node.value]):
            raise yaml.constructor.ConstructorError(
                problem=f"the key {twice[0]!r} comes twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """A whole number."""
        if re.fullmatch(r"[-+]?[0-9_]+", node.value):
            return int(node.value.replace("_", ""))
        return node.value if ":" in node.value else super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        """Any other number."""
        return node.value if ":" in node.value else super().construct_yaml_float(node)


for _kind in ("int", "float"):  # a constructor is registered by its function, not by its name
    _Loader.add_constructor(
        f"tag:yaml.org,2002:{_kind}", getattr(_Loader, f"construct_yaml_{_kind}")
    )


def _repeated(names: Sequence[str]) -> list[str]:
    """The names that stand further ahead already."""
    return [name for i, name in enumerate(names) if name in names[:i]]


def _read_yaml(text: str, what: str) -> Any:
    """The value of a YAML text.

    Raises:
        InputError: it is not YAML, or a key comes twice in it. The message begins with ``what``.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date may not exist
        raise InputError(f"{what}: not YAML ({' '.join(str(error).split())})") from error


def is_core(path: Path) -> bool:
    """Whether a notebook, or a figure of one, is of the core ones by its number."""
    return CORE[0] <= path.name[:2] <= CORE[1]


def numbered_notebooks(only: str | None, *, appendix: bool = False) -> list[Path]:
    """Paths of the numbered notebooks, in order.

    Args:
        only: numbers, as in ``03,04``; None for all.
        appendix: whether to include those from :data:`APPENDIX` on.

    Raises:
        InputError: there is no notebook of a number.
    """
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    every = [path for path in every if appendix or path.name[:2] < APPENDIX]
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
    """Check parameters and sort them by notebook. Numbers written as text become numbers.

    Raises:
        InputError: a name that no notebook has, or a value that a notebook cannot take
            (:meth:`cmrm_utils.studies.parameters.Parameter.check`).
    """
    # A profile may set parameters of notebooks that --only leaves out.
    known = {path: declared(path) for path in [*notebooks, *numbered_notebooks(None)]}
    every = sorted({name for own in known.values() for name in own})
    shares: dict[Path, dict[str, Any]] = {path: {} for path in known}
    for name in sorted(parameters, key=KINDS.__contains__):  # those that may import torch come last
        if name not in every:
            raise unknown("no notebook has a parameter", name, every)
        for path, own in known.items():
            if name in own:
                shares[path][name] = own[name].check(parameters[name])
    return {path: shares[path] for path in notebooks}


def given_parameters(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Parameters from ``-p NAME VALUE``. Values are YAML: 0.1 is a number, [0, 1] a list.

    Raises:
        InputError: a name comes twice, or a value is empty or not YAML. (To YAML an empty text is
            null, so that an unset shell variable would ask for all samples.)
    """
    if twice := _repeated([name for name, _ in pairs]):
        raise InputError(f"parameter {twice[0]}: it is given twice")
    for name, text in pairs:
        if not text.strip():
            raise InputError(f"parameter {name}: no value is given")
    return {name: _read_yaml(text, f"parameter {name} = {text!r:.80}") for name, text in pairs}


@dataclass(frozen=True)
class Job:
    """One run: the notebooks of a profile, with one model.

    Attributes:
        folder: of the run.
        notebooks: the notebooks to run, with the parameters that each is given.
    """

    folder: Path
    notebooks: Mapping[Path, dict[str, Any]]

    @property
    def experiments(self) -> list[tuple[str, dict[str, Any]]]:
        """Each notebook's number with all of its parameters, defaults included."""
        return [
            (path.name[:2], {name: one.default for name, one in declared(path).items()} | values)
            for path, values in self.notebooks.items()
        ]


def planned_jobs(
    profile: str, pairs: Sequence[tuple[str, str]], only: str | None, out: Path | None
) -> tuple[dict[str, Any], list[Job]]:
    """The jobs of a profile, after checking its parameters, models and data.

    Args:
        profile: as :func:`load_profile` takes it.
        pairs: names and values, as text, of parameters that override the profile's.
        only: numbers of notebooks, as in ``03,04``; None for the profile's own, or the
            :data:`CORE` ones.
        out: the run folder; None for ``runs/`` and the profile's name.

    Returns:
        The profile, and one job for each of its models.

    Raises:
        InputError: no such profile, parameter, model or data; two models for one folder.
    """
    settings = load_profile(profile)
    numbers = only or settings.get("notebooks")
    notebooks = [n for n in numbered_notebooks(numbers) if numbers or is_core(n)]
    name = Path(profile).name.removesuffix(".yaml")
    folder = (Path.cwd() / out if out else ROOT / "runs" / name).resolve()
    base = {**(settings.get("parameters") or {}), **given_parameters(pairs)}
    check_parameters(base, notebooks)  # at once, before the import of torch
    base = _located(base)
    models = [] if "model" in base else [_model(each) for each in settings.get("models", [])]
    runs = [(folder / _folder_name(model), {**base, "model": model}) for model in models] or [
        (folder, base)
    ]
    names = [place.name for place, _ in runs]
    if twice := _repeated(names):
        raise InputError(f"profile {profile}: two of its models would share the folder {twice[0]}")
    jobs = [
        Job(place, check_parameters({**parameters, "out": str(place)}, notebooks))
        for place, parameters in runs
    ]
    _check_sources(base, models)
    return settings, jobs


def _check_sources(parameters: Mapping[str, Any], models: Sequence[str]) -> None:
    """See that models, data and reviewer are there: a notebook would fail much later."""
    from cmrm_utils.data.load import load_samples
    from cmrm_utils.judges.reviews import Endpoint
    from cmrm_utils.loading import WHERE, find_model

    settings = parameters.get("settings", {})
    where = {key: settings[key] for key in ("trust_remote_code", *WHERE) if key in settings}
    for model in [parameters["model"]] if "model" in parameters else models:
        find_model(model, **where)
    if "data" in parameters:
        load_samples(parameters["data"])
    reviewer = parameters.get("reviewer")
    if reviewer and not Path(reviewer).is_dir():
        Endpoint.from_environment(reviewer, parameters.get("reviewer_url", ""))


def _folder_name(model: str) -> str:
    """A model's run folder: the name of its own folder, or its hub id with ``--`` for the slash."""
    return Path(model).name if Path(model).is_absolute() else model.replace("/", "--")


def _located(base: Mapping[str, Any]) -> dict[str, Any]:
    """Checked parameters with absolute paths, since notebooks run in a folder of their own."""
    from cmrm_utils.data.load import located

    return _changed(
        base, data=located, judges=lambda each: [*map(_judge, each)], model=_model, reviewer=_model
    )


def _changed(values: Mapping[str, Any], **changes: Callable[[Any], Any]) -> dict[str, Any]:
    """Values by name. A name for which there is a change has its value changed."""
    return {name: changes.get(name, lambda same: same)(value) for name, value in values.items()}


def _judge(item: str | dict[str, str]) -> str | dict[str, str]:
    """A judge with absolute paths of its model and of its prompt's file."""
    if isinstance(item, str):
        name, mark, model = item.partition("=")
        return f"{name}{mark}{_model(model)}"
    return _changed(item, model=_model, prompt=lambda file: str(Path.cwd() / file))


def _model(name: str) -> str:
    """The absolute path of a model's folder; other names stay as they are.

    A folder is looked for in the current directory, then in the repository.
    """
    if name and name not in organism_folders():
        for place in (Path.cwd(), ROOT):
            if (place / name).is_dir():
                return str((place / name).resolve())
    return name
