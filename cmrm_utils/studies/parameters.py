"""What the parameters of the notebooks take: every value, elements too, checked before any work.

A notebook's parameters cell says each one's type and default. What an annotation cannot say of a
parameter that notebooks have is in :data:`KINDS`.
"""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict

from cmrm_utils.errors import InputError, unknown
from cmrm_utils.paths import NOTEBOOKS
from cmrm_utils.store import read_json


def _number(value: Any) -> Any:
    """Text that is plainly a number as one: YAML 1.1 reads ``1e-2`` as text, and ``yes`` as True.

    Raises:
        ValueError: for True and False, which Python counts among the numbers.
    """
    if isinstance(value, bool):
        raise ValueError("it is no number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("it is no number") from None
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
"""A finite number."""


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, strict=False)]
"""How many of something: at least one."""


TYPES = {
    "float": Number,
    "int": Count,
    "bool": Annotated[bool, Strict()],
    "str": str,
    "list": list,
    "dict": dict,
}
"""What the names in annotations stand for: every whole number of the notebooks is a count."""


LOADING = {
    "attn_implementation": str,
    "cache_dir": str,
    "device_map": str | dict,
    "force_download": bool,
    "local_files_only": bool,
    "low_cpu_mem_usage": bool,
    "max_memory": dict,
    "offload_buffers": bool,
    "offload_folder": str,
    "revision": str,
    "subfolder": str,
    "token": str | bool,
    "variant": str,
    "weights_only": bool,
}
"""Settings that ``load_vlm`` passes on to transformers' ``from_pretrained``."""


def validated(kind: Any, value: Any, what: str) -> Any:
    """A value as a type has it: numbers that were written as text are numbers.

    Args:
        kind: a type that pydantic knows.
        value: to check.
        what: the value's name, with which the error begins.

    Raises:
        InputError: which element is wrong, and why, in one line.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            reason = f"it has no {first['loc'][-1]}"
        raise InputError(
            f"{', '.join([what, *_places(value, first['loc'])])} = {_short(first['input'])}: "
            f"{reason[0].lower()}{reason[1:]}"
        ) from error


def _places(value: Any, found: Iterable[int | str]) -> Iterator[str]:
    """Where in a value an error is: pydantic's names of union members, at the end, left out."""
    for at in found:
        if isinstance(value, Mapping) and at in value:
            yield str(at)
        elif isinstance(value, list) and isinstance(at, int):
            yield f"element {at + 1}"
        else:
            return
        value = value[at]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class Parameter:
    """A parameter as a notebook declares it.

    Attributes:
        notebook: the file's name.
        name: of the parameter.
        annotation: its type, as written; empty for none.
        default: its value where nothing else is given.
    """

    notebook: str
    name: str
    annotation: str
    default: Any

    def check(self, value: Any) -> Any:
        """The value, numbers that were written as text made numbers.

        None stands for all samples, where samples are counted: ``n``, ``n_test`` and so on.

        Raises:
            InputError: it is not of the type, or makes no sense: names parameter, element and
                notebook.
        """
        if value is None and self.name.partition("_")[0] == "n":
            return None
        kind = KINDS[self.name]() if self.name in KINDS else _type(self.annotation)
        listed = partial(_no_list_of_twins, empty=self.default == [])
        article = "an" if self.annotation.startswith("i") else "a"
        takes = f"takes {article} {self.annotation}" if self.annotation else "refuses it"
        try:
            what = f"parameter {self.name}"
            return validated(Annotated[kind, AfterValidator(listed)], value, what)
        except InputError as error:
            raise InputError(f"{error} ({self.notebook} {takes})") from error


@cache
def _type(annotation: str) -> Any:
    try:
        return eval(annotation, {"__builtins__": {}}, TYPES)  # the notebook's own, which runs too
    except (NameError, SyntaxError, TypeError):
        return Any


def _no_list_of_twins(value: Any, *, empty: bool) -> Any:
    if isinstance(value, list):
        if not value and not empty:
            raise ValueError("it is empty")
        if twice := [each for i, each in enumerate(value) if each in value[:i]]:
            raise ValueError(f"{_short(twice[0])} is in it twice")
    return value


def declared(path: Path) -> dict[str, Parameter]:
    """A notebook's parameters by name, from the cell that is tagged ``parameters``."""
    cells = read_json(path)["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    found = {}
    target: ast.expr
    for line in ast.parse("".join(tagged[0]["source"]) if tagged else "").body:
        if isinstance(line, ast.AnnAssign) and line.value is not None:
            target, annotation, value = line.target, ast.unparse(line.annotation), line.value
        elif isinstance(line, ast.Assign):
            target, annotation, value = line.targets[0], "", line.value
        else:
            continue
        name, default = ast.unparse(target), ast.literal_eval(value)
        found[name] = Parameter(path.name, name, annotation, default)
    return found


def check_own(notebook: str, values: Mapping[str, Any]) -> None:
    """Check a notebook's parameters from within, where no ``cmrm run`` did: papermill, JupyterLab.

    Args:
        notebook: its name, without ``.ipynb``.
        values: those of its parameters, among others: its ``globals()``.

    Raises:
        InputError: as :meth:`Parameter.check`; or a number is written as text.
    """
    path = NOTEBOOKS / f"{notebook}.ipynb"
    for name, parameter in (declared(path) if path.is_file() else {}).items():
        value = values.get(name, parameter.default)
        if (meant := parameter.check(value)) != value:
            raise InputError(
                f"parameter {name} = {_short(value)}: a number is written as text, write "
                f"{_short(meant)} ({path.name} takes {parameter.annotation})"
            )


def _one_of(what: str, known: Iterable[str]) -> Any:
    """The type of a text that is one of several."""
    names = list(known)

    def check(value: str) -> str:
        if value not in names:
            raise unknown(what, value, names)
        return value

    return Annotated[str, AfterValidator(check)]


def fields(what: str, kinds: Mapping[str, Any], *, total: bool) -> Any:
    """The type of a dict with a type for each key.

    Args:
        what: the beginning of the error for another key, as in ``no setting``.
        kinds: types by key.
        total: whether every key must be there.
    """

    def check(value: Any) -> Any:
        for name in value if isinstance(value, Mapping) else ():
            if name not in kinds:
                raise unknown(what, name, kinds)
        return value

    make: Any = TypedDict
    made = make(what, dict(kinds), total=total)
    made.__pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, strict=True)
    return Annotated[made, BeforeValidator(check)]


def _settings() -> Any:
    """Of ``settings``: what ``load_vlm`` takes, and a device that is there."""
    import torch

    from cmrm_utils.loading import load_vlm

    def device(value: Any) -> Any:
        try:
            torch.empty(0, device=value)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"this machine has no such device ({reason})") from error
        return value

    hints = get_type_hints(load_vlm)
    named = inspect.signature(load_vlm).parameters.values()
    own = {one.name: hints[one.name] for one in named if one.kind is one.KEYWORD_ONLY}
    own |= {"batch_size": Count, "device": Annotated[Any, AfterValidator(device)]}
    passed = {name: kind | None for name, kind in LOADING.items()}
    return fields("no setting", dict(sorted({**passed, **own}.items())), total=False)


def _judges() -> Any:
    """Of ``judges``: forms that can be read, and names of judges, each once."""
    from cmrm_utils.judges.model_judges import JUDGES
    from cmrm_utils.judges.outcomes import TEXT_JUDGES
    from cmrm_utils.judges.panel import Asked

    known = [*TEXT_JUDGES, *JUDGES]

    def item(value: Any) -> Any:
        texts = value.values() if isinstance(value, Mapping) else []
        if not all(isinstance(each, str) for each in texts):
            raise ValueError("what is not text names no judge, model or file")
        if (name := Asked.parse(value).name) not in known:
            raise unknown("no judge", name, known)
        return value

    def once(value: list[Any]) -> list[Any]:
        names = [Asked.parse(each).name for each in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{', '.join(sorted(twice))} is asked twice")
        return value

    return Annotated[list[Annotated[Any, AfterValidator(item)]], AfterValidator(once)]


def _grids() -> Any:
    """Of ``grids``: names of defences, and for each settings like its usual ones."""
    from cmrm_utils.edits import Tokens
    from cmrm_utils.methods.registry import METHODS

    def layers(value: Any) -> Any:
        whole = isinstance(value, list) and value and all(type(each) is int for each in value)
        if value not in ("all", "late") and not whole:
            raise ValueError("layers are all, late, or a list of numbers")
        return value

    special = {
        "layers": Annotated[Any, AfterValidator(layers)],
        "tokens": _one_of("no tokens", get_args(Tokens)),
        "ungated": _one_of("no way", ("projected", "left")),
        "depth": Annotated[Number, Field(ge=0, lt=1)],
    }

    def setting(usual: Mapping[str, Any]) -> Any:
        plain = {key: TYPES.get(type(value).__name__, Any) for key, value in usual.items()}
        kinds = {key: special.get(key, kind) for key, kind in plain.items()}
        return fields("no such setting:", kinds, total=True)

    twins = AfterValidator(partial(_no_list_of_twins, empty=False))
    kinds = {
        name: Annotated[list[setting(one.settings[0])], twins]  # type: ignore[misc]
        for name, one in METHODS.items()
    }
    return fields("no defence", kinds, total=False)


def _vlguard() -> Any:
    """Of ``vlguard``: places, in which ``{}`` stands for the model's name."""

    def place(value: str) -> str:
        try:
            value.format("model")
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError("only {} stands for the model's name") from error
        return value

    return dict[str, Annotated[str, AfterValidator(place)]]


def _meaningless() -> Any:
    """Of ``meaningless``: names of image conditions."""
    from cmrm_utils.conditions import IMAGES

    return list[_one_of("no image", IMAGES)]  # type: ignore[misc]


KINDS: dict[str, Callable[[], Any]] = {
    "grids": _grids,
    "judges": _judges,
    "level": lambda: Literal["dataset", "sample"],
    "meaningless": _meaningless,
    "settings": _settings,
    "vlguard": _vlguard,
}
"""What gives the type of a parameter, where its annotation leaves something open."""
