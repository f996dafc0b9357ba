"""Samples of a user's own file."""

import os
from pathlib import Path
from typing import Any

from cmrm_utils.data.named import DATASETS
from cmrm_utils.data.rows import parse_json, read_row_file
from cmrm_utils.errors import InputError
from cmrm_utils.sample import Sample, answer_letter, checked, options

FIELDS = tuple(name for name in Sample.__dataclass_fields__ if name != "world")
"""Fields that a row may have. No file's samples come from the organism's world."""


def existing_file(path: Path) -> Path:
    """The path, if a file is there.

    Raises:
        InputError: there is none.
    """
    if not os.path.isfile(path):
        if os.path.isdir(path):
            raise InputError(f"{path}: a folder, not a .jsonl or .csv file")
        raise InputError(f"no data set or file {str(path)!r}; named sets: {', '.join(DATASETS)}")
    return path


def from_file(path: Path) -> list[Sample]:
    """The samples of a JSONL or CSV file, one per row.

    Raises:
        InputError: there is no such file, it has no samples, or a row is broken; the message names
            the line.
    """
    by_id: dict[str, Sample] = {}
    for number, row in read_row_file(existing_file(path)):
        try:
            sample = _sample(row, path.parent)
            if sample.id in by_id:
                raise ValueError(f"duplicate id {sample.id!r}")
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from error
        by_id[sample.id] = sample
    if not by_id:
        raise InputError(f"{path}: no samples in it")
    return list(by_id.values())


def _sample(row: dict[str, Any], folder: Path) -> Sample:
    """The sample of one row; a relative image path starts from the file's folder.

    Raises:
        ValueError: the row is broken; the message names the field.
    """
    fields = {
        name: value for name, value in row.items() if value is not None and str(value).strip()
    }
    if unknown := set(fields) - set(FIELDS):
        raise ValueError(f"unknown field {', '.join(map(repr, sorted(unknown)))}")
    if missing := {"id", "query"} - set(fields):
        raise ValueError(f"no {' and no '.join(sorted(missing))}")
    if isinstance(choices := fields.get("choices"), str):
        try:
            fields["choices"] = parse_json(choices)
        except ValueError as error:
            raise ValueError(f"choices must be a JSON list or mapping ({error})") from error
    if "choices" in fields and "answer" in fields:
        fields["answer"] = answer_letter(fields["answer"], options(fields["choices"]))
    if not isinstance(image := fields.get("image", ""), str):
        raise ValueError(f"image must be text, the path of an image file, not {image!r:.40}")
    fields = checked(fields)
    if image:
        fields["image"] = folder / image
    return Sample(**fields)
