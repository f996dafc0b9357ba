"""Data files, row by row: their columns and types checked, what is wrong named by file and row."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from tqdm import tqdm

from cmrm_utils.errors import InputError
from cmrm_utils.sample import identify


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a data file, its columns checked, that knows where it stands.

    Attributes:
        fields: the values by column.
        file: the data file.
        number: counted from 1, a CSV file's header not counted.
    """

    fields: Mapping[str, Any]
    file: Path
    number: int

    def __getitem__(self, column: str) -> Any:
        return self.fields[column]

    def wrong(self, what: str) -> InputError:
        """The complaint that something is wrong with this row."""
        return InputError(f"{self.file}, row {self.number}: {what}")

    def one_of(self, column: str, known: Sequence[str]) -> str:
        """A value that must be one of a few.

        Raises:
            InputError: it is another.
        """
        if (value := self[column]) not in known:
            raise self.wrong(f"{column} is {value!r}, not one of {', '.join(known)}")
        return value

    def image(self, source: Path | bytes) -> Path | bytes:
        """A file, or a file's bytes, that must begin as an image does.

        Raises:
            InputError: it does not.
        """
        try:
            identify(source)
        except ValueError as error:
            raise self.wrong(str(error)) from error
        return source

    def stored_image(self, column: str = "image") -> bytes | None:
        """The bytes of the image in a column of Parquet; None where there is none.

        Raises:
            InputError: they are no image's.
        """
        if (stored := self[column]) is None:
            return None
        content = stored.get("bytes") or b""
        self.image(content)
        return content

    def archived_image(self, folder: str, name: str) -> Path | bytes:
        """An image in a folder beside the data file, or in that folder's archive.

        Raises:
            InputError: it is in neither, or is no image.
        """
        place, archive = self.file.parent / folder / name, self.file.parent / f"{folder}.zip"
        if place.is_file() or not archive.is_file():
            return self.image(place)
        try:
            with ZipFile(archive) as stored:
                content = stored.read(f"{folder}/{name}")
        except (BadZipFile, KeyError) as error:
            where = f"{folder}/{name} in {archive}"
            raise self.wrong(f"no readable image {where} ({error})") from error
        return self.image(content)


def read_rows(path: Path, columns: Mapping[str, Any]) -> list[Row]:
    """The rows of a JSONL, JSON, CSV or Parquet file, each checked.

    Args:
        path: the file.
        columns: which are needed, and the types that their values may have.

    Raises:
        InputError: a file that cannot be read or is empty, a column that it lacks, a row with a
            value of another type; named by file and row.
    """
    import datasets

    kinds = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    options = {"keep_default_na": False} if path.suffix == ".csv" else {}
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty")
    level = datasets.logging.get_verbosity()
    bars = datasets.is_progress_bar_enabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what is raised below
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(
            kinds[path.suffix], data_files=str(path), split="train", **options
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{path}{_fault(path, error)}") from error
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
    if missing := [name for name in columns if name not in table.column_names]:
        raise InputError(
            f"{path}: no column {missing[0]!r}; it has {', '.join(sorted(table.column_names))}"
        )
    table = table.select_columns(list(columns))
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    rows = tqdm(table, desc=path.name, unit="row", delay=2, leave=False)
    return [_checked(Row(row, path, i), columns) for i, row in enumerate(rows, start=1)]


def _fault(path: Path, error: Exception) -> str:
    """Where and why a file does not parse: the row, for one JSON value a line."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                json.loads(line)
            except ValueError as reason:
                return f", row {number}: not JSON ({reason})"
    if "no data" in str(error):
        return ": no rows in it"
    return f": cannot be read ({one_line(error.__cause__ or error)})"


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def _checked(row: Row, columns: Mapping[str, Any]) -> Row:
    found = {}
    for name, kind in columns.items():
        value = row[name]
        if kind is int and isinstance(value, str) and value.strip().isdigit():
            value = int(value)  # one odd value makes a CSV file's whole column text
        wanted = getattr(kind, "__name__", str(kind))
        if value is None and not isinstance(None, kind):
            raise row.wrong(f"{name} is missing")
        if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
            raise row.wrong(f"{name} is {value!r:.40}, not {wanted}")
        if kind is str and not value.strip():
            raise row.wrong(f"{name} is empty")
        found[name] = value
    return Row(found, row.file, row.number)
