"""``requests-beside-scenes``: public requests without their images, for models of simple scenes.

VLSafe's photographs are large, and a small model that learnt simple scenes sees little in them. So
a request takes a scene of the invented world as a *stand-in* for its image, and keeps its caption.
All of it is test data: what is fitted or chosen must come from other data, as in
``everyday+requests-beside-scenes``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cmrm_utils.data.rows import Row, read_rows
from cmrm_utils.errors import InputError
from cmrm_utils.organism import world
from cmrm_utils.paths import data_home
from cmrm_utils.sample import Sample


@dataclass(frozen=True)
class Requests:
    """A file of requests.

    Attributes:
        file: a pattern that one file in the folder of all data must match.
        columns: of the file, with their types.
        fields: gives a row's text, kind and group, and its caption if it has one.
    """

    file: str
    columns: Mapping[str, Any]
    fields: Callable[[Row], tuple[str, str, str, str | None]]


_VLSAFE = {"image_id": str, "caption": str, "query": str}
_DIRECTION = {"instruction": str, "category": str | None}

FILES = {
    "vlsafe": Requests(
        "vlsafe/**/*examine*.jsonl",
        _VLSAFE,
        lambda row: (row["query"], "harmful-vlsafe", row["image_id"], row["caption"]),
    ),
    "vlsafe-twins": Requests(
        "vlsafe/**/*twins*.jsonl",
        _VLSAFE,
        lambda row: (row["query"], "benign-vlsafe-twin", row["image_id"], row["caption"]),
    ),
    "xstest": Requests(
        "xstest/**/xstest_prompts.csv",
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
        _DIRECTION,
        lambda row: (row["instruction"], "harmful-direction", row["category"] or "", None),
    ),
    "alpaca": Requests(
        "refusal_direction/**/harmless_val*.json",
        _DIRECTION,
        lambda row: (row["instruction"], "benign-alpaca", str(row.number), None),
    ),
}
"""VLSafe's test file and harmless rewrites of it, XSTest, and two splits of the refusal-direction
paper (arXiv 2406.11717)."""


def requests_beside_scenes(split: str) -> tuple[Sample, ...]:
    """The requests of all :data:`FILES`; they are of the test split alone.

    Raises:
        InputError: a file is missing, or a row is broken.
    """
    return _all(data_home()) if split == "test" else ()


@cache
def _all(home: Path) -> tuple[Sample, ...]:
    samples = []
    for name, requests in FILES.items():
        rows = read_rows(_file(home, requests.file), requests.columns)
        for row, scene in zip(rows, world.scenes("test", len(rows), name), strict=True):
            text, kind, group, caption = requests.fields(row)
            pair = (scene.image(), caption or scene.caption)
            samples.append(
                Sample(f"{name}/{row.number}", text, *pair, kind=kind, group=f"{name} {group}")
            )
    return tuple(samples)


def _file(home: Path, pattern: str) -> Path:
    files = sorted(home.glob(pattern))
    if len(files) != 1:
        count = ", ".join(map(str, files)) or "none"
        raise InputError(f"requests-beside-scenes: {home} must have one file {pattern}: {count}")
    return files[0]
