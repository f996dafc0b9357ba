"""Types of notebook parameters. Every value, list elements too, is checked before any work starts.

A notebook's parameters cell states the type and the default of each parameter. :data:`KINDS` holds
what an annotation cannot state.
"""

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict

from cmrm_utils.errors import InputError, unknown
from cmrm_utils.paths import NOTEBOOKS
from cmrm_utils.store import read_json


def _number(value: Any) -> Any:
    try:
        # Python counts True and False among the numbers; as text they are none.
        return float(str(value)) if isinstance(value, bool | str) else value
    except ValueError:
        raise ValueError("it is no number") from None


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
"""A finite number, perhaps written as text: YAML 1.1 reads ``1e-2`` as text."""


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, strict=False)]
"""A whole number of at least 1, perhaps written as text."""


TYPES = {"float": Number, "int": Count, "bool": StrictBool, "str": str, "list": list, "dict": dict}
"""Types by their name in an annotation. Every ``int`` of the notebooks is a count."""


_LOADING: dict[Any, str] = {
    str: "attn_implementation cache_dir offload_folder revision subfolder variant",
    bool: "force_download local_files_only low_cpu_mem_usage offload_buffers weights_only",
    dict: "max_memory",
    str | bool: "token",
    str | dict: "device_map",
}


LOADING = {name: kind for kind, names in _LOADING.items() for name in names.split()}
"""Types of the settings that ``load_vlm`` passes on to transformers' ``from_pretrained``."""


def validated(kind: Any, value: Any, what: str, note: str = "") -> Any:
    """Check a value against a type. Numbers written as text become numbers.

    Args:
        kind: a type that pydantic knows.
        value: to check.
        what: the value's name. The error message begins with it.
        note: the end of the error message.

    Raises:
        InputError: one line that names the wrong element and the reason.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        errors = [(_places(value, each["loc"]), each) for each in error.errors()]
        # Each member of a union adds an error. The member that got furthest is the one meant.
        place, first = max(errors, key=lambda each: len(each[0]))
        reasons = [each["msg"].removeprefix("Value error, ") for at, each in errors if at == place]
        reason = " or ".join(text[0].lower() + text[1:] for text in reasons)
        if first["type"] == "missing":
            reason = f"it has no {first['loc'][-1]}"
        where = ", ".join([what, *place])
        raise InputError(f"{where} = {first['input']!r:.80}: {reason}{note}") from error


def _places(value: Any, steps: Iterable[int | str]) -> list[str]:
    """The path to a wrong element, in words. Pydantic's names of union members are left out."""
    places = []
    for step in steps:
        if isinstance(value, Mapping) and step in value:
            places.append(str(step))
        elif isinstance(value, list) and isinstance(step, int):
            places.append(f"element {step + 1}")
        else:
            continue
        value = value[step]
    return places


@dataclass(frozen=True)
class Parameter:
    """A parameter as a notebook declares it.

    Attributes:
        notebook: the file's name.
        name: of the parameter.
        annotation: its type, as written; ``Any`` where there is none.
        default: its value where nothing else is given.
    """

    notebook: str
    name: str
    annotation: str
    default: Any

    def check(self, value: Any) -> Any:
        """Check a value. Numbers written as text become numbers.

        None stands for all samples, where samples are counted: ``n``, ``n_test`` and so on.

        Raises:
            InputError: the value is not of the type, or makes no sense. The message names the
                parameter, the element and the notebook.
        """
        if value is None and self.name.partition("_")[0] == "n":
            return None
        kind = KINDS[self.name]() if self.name in KINDS else _type(self.annotation)
        distinct = AfterValidator(partial(_distinct, empty=self.default == []))
        note = f" ({self.notebook} takes {self.annotation})"
        return validated(Annotated[kind, distinct], value, f"parameter {self.name}", note)


@cache
def _type(annotation: str) -> Any:
    try:
        return eval(annotation, {"__builtins__": {}}, TYPES)  # the notebook runs this code too
    except (NameError, SyntaxError, TypeError):
        return Any


def _distinct(value: Any, *, empty: bool = False) -> Any:
    if isinstance(value, list):
        if not value and not empty:
            raise ValueError("it is empty")
        if twice := [each for i, each in enumerate(value) if each in value[:i]]:
            raise ValueError(f"{twice[0]!r:.80} is in it twice")
    return value


def declared(path: Path) -> dict[str, Parameter]:
    """A notebook's parameters by name, from the cell tagged ``parameters``.

    Raises:
        InputError: the file cannot be read.
    """
    cells = read_json(path)["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    parameters = {}
    for line in ast.parse("".join(tagged[0]["source"]) if tagged else "").body:
        match line:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                annotation = ast.unparse(line.annotation)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                annotation = "Any"
            case _:
                continue
        parameters[name] = Parameter(path.name, name, annotation, ast.literal_eval(value))
    return parameters


def check_own(notebook: str, values: Mapping[str, Any]) -> None:
    """Check parameters inside a notebook that was not started by ``cmrm run``.

    Args:
        notebook: its name, without ``.ipynb``.
        values: its ``globals()``, or any mapping that holds its parameters.

    Raises:
        InputError: as :meth:`Parameter.check`; or a number is written as text.
    """
    path = NOTEBOOKS / f"{notebook}.ipynb"
    for name, parameter in (declared(path) if path.is_file() else {}).items():
        value = values.get(name, parameter.default)
        if (meant := parameter.check(value)) != value:
            raise InputError(
                f"parameter {name} = {value!r:.80}: a number is written as text, write "
                f"{meant!r:.80} ({path.name} takes {parameter.annotation})"
            )


def _one_of(what: str, choices: Iterable[str]) -> Any:
    """The type of a text that must be one of several."""
    names = list(choices)

    def check(value: str) -> str:
        if value not in names:
            raise unknown(what, value, names)
        return value

    return Annotated[str, AfterValidator(check)]


def fields(what: str, kinds: Mapping[str, Any], *, total: bool) -> Any:
    """The type of a dict with one type for each key.

    Args:
        what: the beginning of the error for an unknown key, as in ``no setting``.
        kinds: types by key.
        total: whether every key is required.
    """

    def check(value: Any) -> Any:
        for name in value if isinstance(value, Mapping) else ():
            if name not in kinds:
                raise unknown(what, name, kinds)
        return value

    make: Any = TypedDict
    dict_type = make(what, dict(kinds), total=total)
    dict_type.__pydantic_config__ = {"arbitrary_types_allowed": True, "strict": True}
    return Annotated[dict_type, BeforeValidator(check)]


def _settings() -> Any:
    """The type of ``settings``: what ``load_vlm`` takes, and a device of this machine."""
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
    own = {name: hints[name] for name in inspect.getfullargspec(load_vlm).kwonlyargs}
    own |= {"batch_size": Count, "device": Annotated[Any, AfterValidator(device)]}
    passed = {name: kind | None for name, kind in LOADING.items()}
    return fields("no setting", dict(sorted({**passed, **own}.items())), total=False)


def _judges() -> Any:
    """The type of ``judges``: known judges, each once, whose prompts can be read."""
    from cmrm_utils.judges.model_judges import JUDGES
    from cmrm_utils.judges.outcomes import TEXT_JUDGES
    from cmrm_utils.judges.panel import NamedJudge

    known = [*TEXT_JUDGES, *JUDGES]

    def item(value: Any) -> Any:
        if (name := NamedJudge.parse(value).name) not in known:
            raise unknown("no judge", name, known)
        return value

    def once(value: list[Any]) -> list[Any]:
        names = [NamedJudge.parse(each).name for each in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{', '.join(sorted(twice))} is asked twice")
        return value

    judge = Annotated[str | dict[str, str], AfterValidator(item)]
    return Annotated[list[judge], AfterValidator(once)]


def _depth() -> Any:
    """The type of ``depth``: a share of the layers that is short of all."""
    return Annotated[Number, Field(ge=0, lt=1)]


def _grids() -> Any:
    """The type of ``grids``: by defence, settings of the same form as its defaults."""
    from cmrm_utils.edits import Tokens
    from cmrm_utils.methods.registry import METHODS

    special = {
        "layers": Literal["all", "late"] | Annotated[list[int], Field(min_length=1)],
        "tokens": _one_of("no tokens", get_args(Tokens)),
        "ungated": _one_of("no way", ("projected", "left")),
        "gate": _one_of("no gate", ("none", "published")),
        "depth": _depth(),
    }

    def setting(usual: Mapping[str, Any]) -> Any:
        plain = {key: TYPES.get(type(value).__name__, Any) for key, value in usual.items()}
        kinds = {key: special.get(key, kind) for key, kind in plain.items()}
        return fields("no such setting:", kinds, total=True)

    kinds = {
        name: Annotated[list[setting(one.settings[0])], AfterValidator(_distinct)]  # type: ignore[misc]
        for name, one in METHODS.items()
    }
    return fields("no defence", kinds, total=False)


def _vlguard() -> Any:
    """The type of ``vlguard``: model names or folders, with ``{}`` for the model's own name."""

    def place(value: str) -> str:
        try:
            value.format("model")
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError("only {} stands for the model's name") from error
        return value

    return dict[str, Annotated[str, AfterValidator(place)]]


def _meaningless() -> Any:
    """The type of ``meaningless``: names of image conditions."""
    from cmrm_utils.conditions import IMAGES

    return list[_one_of("no image", IMAGES)]  # type: ignore[misc]


KINDS: dict[str, Callable[[], Any]] = {
    "depth": _depth,
    "grids": _grids,
    "judges": _judges,
    "meaningless": _meaningless,
    "settings": _settings,
    "vlguard": _vlguard,
}
"""Makers of types for parameters whose annotation leaves something open.

They are functions, so that what they import (torch, the judges) is imported only when needed.
"""
