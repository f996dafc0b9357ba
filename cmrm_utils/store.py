"""One folder a run: responses, tables, metrics, vectors, figures, and a manifest written last."""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from cmrm_utils.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
"""The repository; relative run folders are taken from here, wherever a notebook runs."""


STORED = ROOT / "notebooks" / "stored"
"""Results kept in the repository: metrics of the default run, tables of larger ones."""


def versions() -> dict[str, str]:
    """The versions that numbers can depend on."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(json.dumps(value, indent=1, sort_keys=True, default=float) + "\n")
    os.replace(draft, path)


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
    refused.

    Args:
        path: of the file; it need not exist.
        shared: what the first line states.
        kind: the dataclass that a line's fields make.

    Raises:
        InputError: the file was made otherwise, or a line of it is damaged.
    """

    def __init__(self, path: Path, shared: Mapping[str, Any], kind: type[Record]) -> None:
        self.path = path
        self._shared = dict(shared)
        self._kind = kind
        self._found: dict[str, Record] = {}
        self._calls: dict[str, int] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):  # torn by a kill in mid-write: that record is made again
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole))
        for number, line in enumerate(whole.splitlines()):
            where = f"{self.path}:{number + 1}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where}: not JSON") from error
            if number == 0:
                check_same(row, self._shared, self.path)
                continue
            if isinstance(row, dict) and set(row) == {"call", "before"}:
                self._calls.setdefault(row["call"], row["before"])
                continue
            try:
                key = row.pop("id")
                fields = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
                self._found[key] = self._kind(**fields)
            except (AttributeError, KeyError, TypeError) as error:
                raise InputError(f"{where}: not a {self._kind.__name__.lower()}") from error

    def get(self, key: str) -> Record | None:
        """The record of an id, or None where it is still to be made."""
        return self._found.get(key)

    def first(self, count: int) -> set[str]:
        """The ids of the first so many records."""
        return set(islice(self._found, count))

    def begin(self, call: str) -> int:
        """How many records there were when this call began; noted down the first time.

        Args:
            call: a hash of what is asked for. Asked for again after a kill, it begins where it did.
        """
        if call not in self._calls:
            self._calls[call] = len(self._found)
            line = {"call": call, "before": self._calls[call]}
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        return self._calls[call]

    @contextmanager
    def appending(self) -> Iterator["Records[Record]"]:
        """Hold the file open for :meth:`add`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            self._stream: IO[str] = stream
            if stream.tell() == 0:
                stream.write(json.dumps(self._shared) + "\n")
            yield self

    def add(self, found: Iterable[tuple[str, Record]]) -> None:
        """Append and flush records."""
        for key, record in found:
            row = {"id": key, **vars(record)}
            self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._found[key] = record
        self._stream.flush()


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


class Run:
    """The folder that the notebooks of one run share.

    Args:
        folder: of the run; relative to the repository, or to the folder ``CMRM_HOME`` if set.
        notebook: the name of the notebook that writes.
        shared: what all notebooks of a run must agree on (the model's fingerprint, the data).

    Raises:
        InputError: the folder holds results of another model or data.
    """

    def __init__(self, folder: str | Path, notebook: str, shared: Mapping[str, Any]) -> None:
        self.folder = Path(os.environ.get("CMRM_HOME", ROOT)) / folder
        self.notebook = notebook
        self.shared = dict(shared)
        self._written: list[str] = []
        settings = self.folder / "run.json"
        if settings.exists():
            check_same(json.loads(settings.read_text()), self.shared, self.folder)
        else:
            write_json(settings, self.shared)
        self.manifest.unlink(missing_ok=True)

    @property
    def manifest(self) -> Path:
        """The file that proves that this notebook ran to its end."""
        return self.folder / "manifests" / f"{self.notebook}.json"

    @property
    def responses(self) -> Path:
        """The responses of all notebooks of the run."""
        return self.folder / "responses.jsonl"

    def _path(self, kind: str, name: str) -> Path:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._written.append(f"{kind}/{name}")
        return path

    def table(self, name: str, rows: "pd.DataFrame") -> "pd.DataFrame":
        """Write a table as Parquet and hand it back."""
        rows.to_parquet(self._path("tables", f"{name}.parquet"))
        return rows

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Write the notebook's headline numbers as JSON."""
        write_json(self._path("metrics", f"{self.notebook}.json"), values)

    def figure(self, name: str, figure: Any) -> None:
        """Write a figure as PNG and SVG."""
        for kind in ("png", "svg"):
            figure.savefig(self._path("figures", f"{name}.{kind}"))

    def finish(self, parameters: Mapping[str, Any]) -> None:
        """Write the manifest, last of all: parameters, versions, and the files written."""
        write_json(
            self.manifest,
            {
                "notebook": self.notebook,
                "shared": self.shared,
                "parameters": dict(parameters),
                "versions": versions(),
                "files": sorted(set(self._written)),
            },
        )
