"""Data files, read row by row: columns and types are checked, errors name the file and row."""

import codecs
import csv
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile

from tqdm import tqdm

from cmrm_utils.errors import InputError
from cmrm_utils.sample import identify

Source = TypeVar("Source", Path, bytes)


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a data file, and where it stands.

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
        """An error that names this row; to be raised by the caller."""
        return InputError(f"{self.file}, row {self.number}: {what}")

    def one_of(self, column: str, choices: Sequence[str]) -> str:
        """The value of a column, which must be one of its choices.

        Raises:
            InputError: it is another.
        """
        if (value := self[column]) not in choices:
            raise self.wrong(f"{column} is {value!r}, not one of {', '.join(choices)}")
        return value

    def image(self, source: Source) -> Source:
        """The source itself, a file or a file's bytes, if it begins as an image does.

        Raises:
            InputError: it does not.
        """
        try:
            identify(source)
        except ValueError as error:
            raise self.wrong(str(error)) from error
        return source

    def stored_image(self) -> bytes | None:
        """The bytes of the image in Parquet's column ``image``; None where the column is empty.

        Raises:
            InputError: the bytes are no image.
        """
        stored = self["image"]
        return None if stored is None else self.image(stored.get("bytes") or b"")

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
        except (BadZipFile, KeyError, OSError, EOFError, RuntimeError, zlib.error) as error:
            where = f"{folder}/{name} in {archive}"
            raise self.wrong(f"no readable image {where} ({error})") from error
        return self.image(content)


def read_row_file(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL or CSV file, each with the line that it begins on.

    Text is UTF-8, with or without a byte order mark. Empty lines are skipped. Every value of a CSV
    file is text; a quoted field may hold line breaks.

    Args:
        path: the file; its name ends in ``.jsonl`` or ``.csv``.

    Raises:
        InputError: a file that cannot be read or is no UTF-8; a line that is no JSON object; a
            header with an empty or a repeated name, a row with more or fewer cells than it has, a
            quote that does not close where it should; named by file and line.
    """
    readers = {".jsonl": _json_lines, ".csv": _csv_rows}
    if (reader := readers.get(path.suffix.lower())) is None:
        raise InputError(f"{path}: expected a .jsonl or .csv file")
    return reader(path)


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text, wrong = raw.decode(), raw.find(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        line = raw.count(b"\n", 0, wrong) + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 text (byte 0x{raw[wrong]:02x}); save the file as UTF-8"
        )
    return text


def parse_json(text: str) -> Any:
    """The value of a JSON text, read strictly: NaN, Infinity and repeated keys are refused.

    Raises:
        ValueError: the text is not such JSON.
    """

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("a key comes twice")
        return fields

    try:
        return json.loads(text, parse_constant=no_number, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _read_text(path)), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not a readable row ({error})") from error
        yield number, _object(row, f"{path}:{number}")


def _object(row: Any, where: str) -> dict[str, Any]:
    """The row, if it is a JSON object whose text can be written as UTF-8."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a readable row (no JSON object, but {row!r:.40})")
    for name, value in row.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            text = name.encode(errors="backslashreplace").decode()
            why = "holds half a surrogate pair, which is no character"
            raise InputError(f"{where}: {text} {why}") from error
    return row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = io.StringIO(_read_text(path), newline="").readlines()
    header: list[str] = []
    for number, cells, spanned in _csv_cells(path, lines):
        where = f"{path}:{number}"
        if not header:
            header = cells
            if "" in (named := [name.strip() for name in header]):
                raise InputError(f"{where}: column {named.index('') + 1} of the header has no name")
            if twice := [name for i, name in enumerate(header) if name in header[:i]]:
                raise InputError(f"{where}: the header has the column {twice[0]!r} twice")
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{where}: {len(cells)} cells, but the header has {len(header)} (a text with a "
                'comma in it stands in "quotes")'
            )
        if _look_like_rows(spanned, cells[0], len(header)):
            raise InputError(
                f"{where}: a quoted field runs on over {len(spanned)} lines that look like rows of "
                'their own; write a quote within a field twice (""), or save the rows as JSON lines'
            )
        yield number, dict(zip(header, cells, strict=True))


def _csv_cells(path: Path, lines: list[str]) -> list[tuple[int, list[str], list[str]]]:
    """Rows that are not empty: the line each begins on, its cells, the further lines it spans."""
    reader = csv.reader(lines, strict=True)
    rows = []
    before = csv.field_size_limit(max(csv.field_size_limit(), sum(map(len, lines))))
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((start, cells, lines[start : reader.line_num]))
            start = reader.line_num + 1
    except csv.Error as error:
        why = f"a quoted field goes wrong in line {reader.line_num} ({error})"
        if "unexpected end" in str(error):
            why = "a quote opens in this row and never closes"
        fix = 'write a quote within a quoted field twice ("")'
        raise InputError(f"{path}:{start}: {why}; {fix}") from error
    finally:
        csv.field_size_limit(before)
    return rows


def _look_like_rows(spanned: list[str], first: str, width: int) -> bool:
    """Whether each further line of a row looks like a row of its own, swallowed by a stray quote.

    Such a line has as many cells as the header, with no blank after the commas between them (the
    last cell may be empty), and its first cell has the form of this row's: ``b7`` and ``a12``, not
    ``Dear Ann``. The quote that ends the field stands after one of the commas.
    """

    def form(cell: str) -> str:
        return re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", cell.strip()))

    cells = [re.split(r",(?=\S|\r?$)", line) for line in spanned]
    return (
        width > 1
        and bool(cells)
        and all(len(each) == width and form(each[0]) == form(first) for each in cells)
    )


def read_rows(path: Path, columns: Mapping[str, Any]) -> list[Row]:
    """The rows of a JSONL, JSON, CSV or Parquet file, each checked.

    Args:
        path: the file.
        columns: which are needed, and the types that their values may have.

    Raises:
        InputError: a file that cannot be read or is empty, a column that it lacks, a row with a
            value of another type; named by file and row.
    """
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty")
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.suffix == ".json":
        rows = _json_list(path)
    else:
        rows = [row for _, row in read_row_file(path)]
    if not rows:
        raise InputError(f"{path}: no rows in it")
    names = {name for row in rows for name in row}
    if missing := [name for name in columns if name not in names]:
        raise InputError(f"{path}: no column {missing[0]!r}; it has {', '.join(sorted(names))}")
    bar = tqdm(rows, desc=path.name, unit="row", delay=2, leave=False)
    return [_checked(Row(row, path, i), columns) for i, row in enumerate(bar, start=1)]


def _json_list(path: Path) -> list[dict[str, Any]]:
    text = _read_text(path)
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: not a list of rows, but {rows!r:.40}")
    return [_object(row, f"{path}, row {i}") for i, row in enumerate(rows, start=1)]


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            return table.read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())


def _checked(row: Row, columns: Mapping[str, Any]) -> Row:
    """The row with the needed columns alone, its numbers in text read as numbers."""
    fields = {}
    for name, kind in columns.items():
        value = row.fields.get(name)
        if kind is int and isinstance(value, str) and value.strip().isdecimal():
            value = int(value)  # every value of a CSV file is text
        if value is None and not isinstance(None, kind):
            raise row.wrong(f"{name} is missing")
        if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
            raise row.wrong(f"{name} is {value!r:.40}, not {getattr(kind, '__name__', kind)}")
        if kind is str and not value.strip():
            raise row.wrong(f"{name} is empty")
        fields[name] = value
    return Row(fields, row.file, row.number)
