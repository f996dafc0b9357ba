"""Files of a run: whole or not there at all, locked while written, resumed after a kill."""

import fcntl
import json
import os
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cmrm_utils.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write a file into a one-line error.

    Raises:
        InputError: an error of the operating system: a full disk, a read-only folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # from a library, such as a cell's timeout
            raise
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); what was written before is "
            "whole: fix that, or choose another output folder, and run again"
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file; the system frees the lock when this process ends.

    The lock is a file beside it, which holds the process's number and stays.

    Raises:
        InputError: another process holds the lock.
    """
    with path.with_name(f"{path.name}.lock").open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise InputError(
                f"{path} is being written by process {stream.read().strip()}: "
                "wait until it ends, or choose another output folder"
            ) from error
        except OSError:  # some network file systems have no locks
            warnings.warn(f"{path} cannot be locked: let no other process write it", stacklevel=2)
        stream.truncate(0)
        stream.write(f"{os.getpid()} on {platform.node()}")
        stream.flush()
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a draft to write, which replaces the file at the end of the ``with`` block.

    Readers see the old file or the new one, never half a file, even after a kill.

    Raises:
        InputError: as in :func:`writing`; the old file stays.
    """
    # A kill leaves a draft behind. The process's number in its name keeps drafts apart.
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def check_free(folder: Path) -> None:
    """Check that a folder can be made there, or that an empty one is there.

    Raises:
        InputError: it has something in it; it, or a folder above it, is a file.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise InputError(f"{place} is a file, not a folder: choose another folder")
    if place == folder and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another folder")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, replacing the file as a whole."""
    text = json.dumps(value, indent=1, sort_keys=True, default=float)
    with replacing(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read a file into a one-line error.

    Raises:
        InputError: an error of the operating system, or of the file's reader.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        size = "it is empty" if path.is_file() and not path.stat().st_size else str(error)
        reason = " ".join(size.split())[:200]
        raise InputError(
            f"{path}: cannot be read ({reason}): fix it, or delete it and run again what made it"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file is damaged or cannot be read.
    """
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        return content


def read_table(path: Path) -> "pd.DataFrame":
    """Read a Parquet table.

    Raises:
        InputError: the file is damaged or cannot be read.
    """
    import pandas as pd

    with reading(path):
        return pd.read_parquet(path)


def read_csv(path: Path) -> "pd.DataFrame":
    """Read a table of text, in which only an empty cell is missing: *none* is a condition."""
    import pandas as pd

    return pd.read_csv(path, keep_default_na=False, na_values=[""])


@dataclass(frozen=True)
class Response:
    """A model's response in a trial.

    Attributes:
        text: the decoded text, without special tokens.
        ids: the generated token ids, with the end token if there is one.
        finished: whether it ended with an end token before the token limit.
        log_odds: that its first token opens a refusal, if openers were named; in nats.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool
    log_odds: float | None = None


Record = TypeVar("Record")


class Records(Generic[Record]):
    """Records by id in a JSON-lines file: appended one by one, read again to resume.

    The first line states what all records have in common (model, settings); a file with another
    first line is refused. A kill may tear the last line, which is ignored and written again. A
    file without one whole line counts as empty.

    Args:
        path: the file, which need not exist. With None, records are kept in memory only.
        shared: the content of the first line.
        kind: the dataclass of the records; each line has its fields.

    Attributes:
        shared: as given.

    Raises:
        InputError: the first line differs, or a line is damaged.
    """

    def __init__(self, path: Path | None, shared: Mapping[str, Any], kind: type[Record]) -> None:
        self._path = path
        self.shared = dict(shared)
        self._kind = kind
        self._forget()
        if path is not None and path.exists():
            self._read(path)

    def _forget(self) -> None:
        self._found: dict[str, Record] = {}
        self._calls: dict[str, int] = {}
        self._end, self._lines = 0, 0  # bytes and lines of the file that are read

    def _read(self, path: Path) -> None:
        """Read the lines that are new since the last read, up to the last whole line."""
        with reading(path), path.open("rb") as stream:
            stream.seek(self._end)
            raw = stream.read()
        for line in raw[: raw.rfind(b"\n") + 1].splitlines(keepends=True):
            where = f"{path}:{self._lines + 1}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where}: not JSON") from error
            if self._lines == 0:
                if not isinstance(row, dict):
                    raise InputError(f"{where}: no JSON object that says what the lines share")
                check_same(row, self.shared, path)
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
        """The record of an id; None if there is none yet."""
        return self._found.get(key)

    @property
    def all(self) -> Mapping[str, Record]:
        """Every record by its id, in the order of the file."""
        return self._found

    @contextmanager
    def appending(self) -> Iterator["Records[Record]"]:
        """Open the file for :meth:`add` and :meth:`begin`, for this process alone.

        First it reads what other processes have appended since.

        Raises:
            InputError: another process is appending, or the file cannot be written.
        """
        if (path := self._path) is None:
            yield self
            return
        with ExitStack() as held:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(path))
                # Unbuffered: what add() has written survives the end of the process.
                self._stream = held.enter_context(path.open("ab", buffering=0))
                if os.fstat(self._stream.fileno()).st_size < self._end:  # it was replaced
                    self._forget()
                self._read(path)
                self._stream.truncate(self._end)
            if self._end == 0:
                self._write([self.shared])
            yield self

    def begin(self, *call: str) -> set[str]:
        """The ids of the records that existed when this call first began.

        The first call writes their number down, under a hash of the texts that tell it from other
        calls. A resumed call reads the number.
        """
        digest = hashed([" ".join(call)], 24)
        if digest not in self._calls:
            before = len(self._found)
            self._write([{"call": digest, "before": before}])
            self._calls[digest] = before
        return set(islice(self._found, self._calls[digest]))

    def add(self, records: Iterable[tuple[str, Record]]) -> None:
        """Append records; existing ones stay as they are.

        Raises:
            InputError: the file cannot be written; what was written before stays valid.
        """
        new = {key: record for key, record in records if key not in self._found}
        self._write(
            [
                {"id": key, **{k: v for k, v in vars(record).items() if v is not None}}
                for key, record in new.items()
            ]
        )
        self._found.update(new)

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all rows as lines, or none of them."""
        if self._path is None:
            return
        lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
        left = memoryview(b"".join(lines))
        with writing(self._path):
            try:
                while left:
                    left = left[self._stream.write(left) :]
            except BaseException:
                self._stream.truncate(self._end)
                raise
        self._end += sum(map(len, lines))
        self._lines += len(lines)


class Responses(Records[Response]):
    """Responses by trial id; all have the same model and token limit."""

    def __init__(self, path: Path | None, shared: Mapping[str, Any]) -> None:
        super().__init__(path, shared, Response)


def hashed(texts: Iterable[str], digits: int = 16) -> str:
    """The first hex digits of a hash of texts, in their order."""
    return sha256("\0".join(texts).encode()).hexdigest()[:digits]


def check_same(actual: Mapping[str, Any], settings: Mapping[str, Any], where: Path) -> None:
    """Check that stored results were made with these settings.

    Raises:
        InputError: a setting differs; the message names the first one, and what to do.
    """
    for key in settings:
        if actual.get(key) != settings[key]:
            raise InputError(
                f"{where} was made with {key} = {actual.get(key)!r}, not {settings[key]!r}: "
                "choose another output folder, or delete this one and run again"
            )
