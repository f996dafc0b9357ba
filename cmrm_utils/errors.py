"""The error for bad input, and its wording for a name that is not known."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class InputError(ValueError):
    """Raised for bad input; the message says what to change, and the command line exits with 2."""


def unknown(what: str, name: Any, names: Iterable[Any]) -> InputError:
    """The error for a name that is not among those known: it suggests the closest, and lists all.

    Args:
        what: the beginning of the sentence, as in ``no profile``.
        name: as it was given.
        names: those that exist.
    """
    texts = [str(each) for each in names]
    hint = did_you_mean(name, texts)
    return InputError(f"{what} {name!r}; {hint}there are {', '.join(texts) or 'none'}")


def did_you_mean(name: Any, names: Iterable[str]) -> str:
    """``did you mean 'organism'? `` for a name close to a known one; empty if none is close."""
    near = get_close_matches(str(name), list(names), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
