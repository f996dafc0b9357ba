"""One folder a run: responses, tables, metrics, vectors, figures, and a manifest written last."""

import fcntl
import json
import os
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cmrm_utils.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line what keeps a file from being written.

    Raises:
        InputError: for any error of the system: a full disk, a folder that is read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own, such as a cell's timeout
            raise
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); what was written before is "
            "whole: mend that, or choose another output folder, and run again"
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file; the system lets go when this process ends.

    The lock is on a file beside it, which holds the process's number and stays.

    Raises:
        InputError: another process holds it.
    """
    with path.with_name(f"{path.name}.lock").open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise InputError(
                f"{path} is being written by process {stream.read().strip()}: "
                "wait until it has ended, or choose another output folder"
            ) from error
        except OSError:  # some network file systems have no locks
            warnings.warn(f"{path} cannot be locked: let no other process write it", stacklevel=2)
        stream.truncate(0)
        stream.write(f"{os.getpid()} on {platform.node()}")
        stream.flush()
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to write, which takes the file's place when it is done.

    A reader, and whoever comes after a kill, sees the old file or the new one, never a half.

    Raises:
        InputError: what :func:`writing` tells; the old file stays.
    """
    # A kill leaves a draft behind; its name is this process's own, so none is taken for another's.
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in the place of what is there."""
    text = json.dumps(value, indent=1, sort_keys=True, default=float)
    with replacing(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tell in one line that a file is damaged or cannot be read.

    Raises:
        InputError: for errors of the system, and of whatever reads the file.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        size = "it is empty" if path.is_file() and not path.stat().st_size else str(error)
        reason = " ".join(size.split())[:200]
        raise InputError(
            f"{path}: cannot be read ({reason}): mend it, or delete it and run again what made it"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file is damaged, or cannot be read.
    """
    with reading(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found


def read_table(path: Path) -> "pd.DataFrame":
    """A Parquet table.

    Raises:
        InputError: the file is damaged, or cannot be read.
    """
    import pandas as pd

    with reading(path):
        return pd.read_parquet(path)


@dataclass(frozen=True)
class Response:
    """What a model said in a trial.

    Attributes:
        text: decoded, without special tokens.
        ids: the generated token ids, the end token included where there is one.
        finished: whether it ended by itself before the token limit.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool


Record = TypeVar("Record")


class Records(Generic[Record]):
    """Records by id in one JSON-lines file; appended as they come, read on resume.

    The first line states what all of them share (the model, settings); files made otherwise are
    refused. A kill may tear the last line: it is passed over, and made again; a file of no whole
    line has not begun.

    Args:
        path: of the file; it need not exist.
        shared: what the first line states.
        kind: the dataclass that a line's fields make.

    Attributes:
        path: as given.
        shared: as given.

    Raises:
        InputError: the file was made otherwise, or a line of it is damaged.
    """

    def __init__(self, path: Path, shared: Mapping[str, Any], kind: type[Record]) -> None:
        self.path = path
        self.shared = dict(shared)
        self._kind = kind
        self._forget()
        if path.exists():
            self._read()

    def _forget(self) -> None:
        self._found: dict[str, Record] = {}
        self._calls: dict[str, int] = {}
        self._end, self._lines = 0, 0  # bytes and lines of the file that are read

    def _read(self) -> None:
        """Take in what the file has beyond what is known, up to its last whole line."""
        with reading(self.path), self.path.open("rb") as stream:
            stream.seek(self._end)
            raw = stream.read()
        for line in raw[: raw.rfind(b"\n") + 1].splitlines(keepends=True):
            where = f"{self.path}:{self._lines + 1}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where}: not JSON") from error
            if self._lines == 0:
                if not isinstance(row, dict):
                    raise InputError(f"{where}: no JSON object that says what the lines share")
                check_same(row, self.shared, self.path)
            else:
                self._take(row, where)
            self._end += len(line)
            self._lines += 1

    def _take(self, row: Any, where: str) -> None:
        try:
            if "call" in row:
                self._calls.setdefault(row["call"], int(row["before"]))
                return
            key = row.pop("id")
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
            self._found.setdefault(key, self._kind(**fields))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: not a {self._kind.__name__.lower()}") from error

    def get(self, key: str) -> Record | None:
        """The record of an id, or None where it is still to be made."""
        return self._found.get(key)

    @property
    def all(self) -> Mapping[str, Record]:
        """Every record by its id, in the order of the file."""
        return self._found

    def first(self, n: int) -> set[str]:
        """The ids of the first ``n`` records, in the order of the file."""
        return set(islice(self._found, n))

    @contextmanager
    def appending(self) -> Iterator["Records[Record]"]:
        """Hold the file open for :meth:`add` and :meth:`begin`, for this process alone.

        What other processes appended since it was read is taken in first.

        Raises:
            InputError: another process is appending, or the place cannot be written to.
        """
        with ExitStack() as held:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.path))
                # Unbuffered: what add() has written survives the end of the process.
                self._stream = held.enter_context(self.path.open("ab", buffering=0))
                if os.fstat(self._stream.fileno()).st_size < self._end:  # another file by now
                    self._forget()
                self._read()
                self._stream.truncate(self._end)
            if self._end == 0:
                self._write([self.shared])
            yield self

    def begin(self, digest: str) -> int:
        """How many records the file held when the call of this digest first began.

        The first time, that is how many it holds now, and a line says so; later, what the line
        says. With :meth:`first`, a resumed call knows what it found when it began.
        """
        if digest not in self._calls:
            before = len(self._found)
            self._write([{"call": digest, "before": before}])
            self._calls[digest] = before
        return self._calls[digest]

    def add(self, found: Iterable[tuple[str, Record]]) -> None:
        """Append records; those that are there already stay as they are.

        Raises:
            InputError: the disk is full, say; what was written before stays valid.
        """
        new = {key: record for key, record in found if key not in self._found}
        self._write([{"id": key, **vars(record)} for key, record in new.items()])
        self._found.update(new)

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """All of the rows as lines, or none of them."""
        lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
        left = memoryview(b"".join(lines))
        with writing(self.path):
            try:
                while left:
                    left = left[self._stream.write(left) :]
            except BaseException:
                self._stream.truncate(self._end)
                raise
        self._end += sum(map(len, lines))
        self._lines += len(lines)


def read_header(path: Path) -> dict[str, Any] | None:
    """What the first line of a file of :class:`Records` states; None where it has not begun.

    Raises:
        InputError: it states nothing, or cannot be read.
    """
    with reading(path), path.open("rb") as stream:
        line = stream.readline()
        found = json.loads(line) if line.endswith(b"\n") else None
        if found is not None and not isinstance(found, dict):
            raise ValueError("its first line is no JSON object")
        return found


class Responses(Records[Response]):
    """Responses by trial id; they share the model and the token limit."""

    def __init__(self, path: Path, shared: Mapping[str, Any]) -> None:
        super().__init__(path, shared, Response)


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Refuse results that were made otherwise.

    Raises:
        InputError: naming the first setting that differs and what to do.
    """
    for key in wanted:
        if found.get(key) != wanted[key]:
            raise InputError(
                f"{where} was made with {key} = {found.get(key)!r}, not {wanted[key]!r}: "
                "choose another output folder, or delete this one and run again"
            )
