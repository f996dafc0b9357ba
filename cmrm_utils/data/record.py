"""What a public data set is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrm_utils.data.rows import Row
from cmrm_utils.sample import Sample


@dataclass(frozen=True, eq=False)
class PublicSet:
    """What is known about a data set, and how its rows become samples.

    Attributes:
        name: what it is called here; ids of its samples begin with it.
        hub: its id on the Hugging Face hub; None for a set that is elsewhere, of which only a local
            copy is read.
        files: the data files (configuration and split are in their names), as paths in the hub's
            repository and in a local copy alike.
        columns: the columns that are read, and their types.
        samples: makes the samples of a row; it is given the folder of all data for their images.
        beside: files that lie beside the data files and hold their images.
        revision: of the hub's repository (or of ``get``), a full commit hash; None for the newest.
        licence: as the source states it.
        note: what a reader should know before opening it.
        count: how many samples the whole set gives.
        size: of the download.
        get: commands that make a local copy, run in the folder of all data; by default the hub's.
        repeats: whether ids may repeat; they are then numbered ``#2``, ``#3`` ...
        paired: whether its requests are text and get VLSafe's images here (:func:`pair`).
        pinned: whether the revision is the record's own, not one that a data name gave.
    """

    name: str
    hub: str | None
    files: tuple[str, ...]
    columns: Mapping[str, Any]
    samples: Callable[[Row, Path], list[Sample]]
    licence: str
    note: str
    count: int
    size: str
    revision: str | None = None
    beside: tuple[str, ...] = ()
    get: str = ""
    repeats: bool = False
    paired: bool = False
    pinned: bool = True

    @property
    def source(self) -> str:
        """Where it comes from: hub id, files and revision, or the command that makes a copy."""
        if self.hub is None:
            return self.command
        first, more = self.files[0], f" and {len(self.files) - 1} more" * (len(self.files) > 1)
        return f"{self.hub} on the hub, {first}{more}, revision {self.revision or 'as first taken'}"

    @property
    def command(self) -> str:
        """The shell command that makes a local copy, run in the folder of all data."""
        pinned = f" --revision {self.revision}" if self.revision else ""
        return self.get or (
            f"hf download {self.hub} --repo-type dataset{pinned} --local-dir {self.name} "
            + " ".join([*self.files, *self.beside])
        )

    @property
    def part(self) -> str:
        """What names it in data, its revision with it where that is not the pinned one."""
        return self.name if self.pinned else f"{self.name}@{self.revision}"
