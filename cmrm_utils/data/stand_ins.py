"""``requests-beside-scenes``: public requests without their images, for models of simple scenes.

VLSafe's photographs are large, and a small model that learnt simple scenes sees little in them. So
a request takes a scene of the invented world as a *stand-in* for its image, and keeps its caption.
All of it is test data: what is fitted or chosen must come from other data, as in
``everyday+requests-beside-scenes``.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cmrm_utils.data.public import find_files
from cmrm_utils.data.rows import Row, read_rows
from cmrm_utils.data.sets import SETS
from cmrm_utils.errors import InputError
from cmrm_utils.organism import world
from cmrm_utils.paths import data_home
from cmrm_utils.sample import Sample


@dataclass(frozen=True)
class Requests:
    """A file of requests.

    Attributes:
        file: a pattern that one file in the folder of all data must match.
        get: how to get it: ``hub`` (the public set of the same name has it), a command, or empty
            where nobody publishes it; a file that nobody publishes may be missing.
        columns: of the file, with their types.
        fields: gives a row's text, kind and group, and its caption if it has one.
    """

    file: str
    get: str
    columns: Mapping[str, Any]
    fields: Callable[[Row], tuple[str, str, str, str | None]]


_VLSAFE = {"image_id": str, "caption": str, "query": str}
_DIRECTION = {"instruction": str, "category": str | None}
_CLONE = "git clone https://github.com/andyrdt/refusal_direction"

FILES = {
    "vlsafe": Requests(
        "vlsafe/**/*examine*.jsonl",
        "hub",
        _VLSAFE,
        lambda row: (row["query"], "harmful-vlsafe", row["image_id"], row["caption"]),
    ),
    "vlsafe-twins": Requests(
        "vlsafe/**/*twins*.jsonl",
        "",
        _VLSAFE,
        lambda row: (row["query"], "benign-vlsafe-twin", row["image_id"], row["caption"]),
    ),
    "xstest": Requests(
        "xstest/**/xstest_prompts.csv",
        "hub",
        {"prompt": str, "type": str, "label": str},
        lambda row: (
            row["prompt"],
            "harmful-xstest"
            if row.one_of("label", ("safe", "unsafe")) == "unsafe"
            else "benign-xstest",
            row["type"],
            None,
        ),
    ),
    "refusal-direction": Requests(
        "refusal_direction/**/harmful_test.json",
        _CLONE,
        _DIRECTION,
        lambda row: (row["instruction"], "harmful-direction", row["category"] or "", None),
    ),
    "alpaca": Requests(
        "refusal_direction/**/harmless_val*.json",
        _CLONE,
        _DIRECTION,
        lambda row: (row["instruction"], "benign-alpaca", str(row.number), None),
    ),
}
"""VLSafe's test file and harmless rewrites of it, XSTest, and two splits of the refusal-direction
paper (arXiv 2406.11717)."""


def requests_beside_scenes(split: str) -> tuple[Sample, ...]:
    """The requests of all :data:`FILES`; they are of the test split alone.

    What the folder of all data lacks comes from the hub, if that has it. A warning names a file
    that nobody publishes and that is not there.

    Raises:
        InputError: a file cannot be had, or a row is broken.
    """
    return _all(data_home()) if split == "test" else ()


@cache
def _all(home: Path) -> tuple[Sample, ...]:
    samples = []
    for name, requests in FILES.items():
        file = _file(home, name, requests)
        rows = read_rows(file, requests.columns) if file else []
        for row, scene in zip(rows, world.scenes("test", len(rows), name), strict=True):
            text, kind, group, caption = requests.fields(row)
            pair = (scene.image(), caption or scene.caption)
            samples.append(
                Sample(f"{name}/{row.number}", text, *pair, kind=kind, group=f"{name} {group}")
            )
    return tuple(samples)


def _file(home: Path, name: str, requests: Requests) -> Path | None:
    files = sorted(home.glob(requests.file))
    if len(files) == 1:
        return files[0]
    where = f"requests-beside-scenes: {home} must have one file {requests.file}"
    if files:
        raise InputError(f"{where}: {', '.join(map(str, files))}")
    if requests.get == "hub":
        return find_files(SETS[name], home)[0]
    if requests.get:
        raise InputError(f"{where}: none; in {home}, run: {requests.get}")
    why = f"requests-beside-scenes: no file {requests.file} in {home}: {name} is left out"
    warnings.warn(why, stacklevel=2)
    return None
