"""The table of results: rows that judge themselves, and the file that they are written to."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from benchmarks.timing import Ratio, Timings

RESULTS = Path(__file__).parent / "RESULTS.md"

VERSIONS = ("torch", "transformers", "steering-vectors", "nnsight")

HEAD = """# Benchmarks

Written by `python -m benchmarks`; nothing here is typed in by hand. Each topic names the machine
and the day it was measured on, and is replaced when it is measured again there.

Ways of one job are timed in turn in one process: one uncounted round, then the counted ones.
*Time* columns are medians in seconds; a *ratio* is the median of the rounds' ratios, with their
quartiles in brackets. *met* compares that median with the target, and says "open" where the target
lies between the quartiles.
"""

ON_GPU = {
    "sweep": "11 alphas of 8 samples cost at most 2.5 times one alpha",
    "steering": "steering costs at most 2% over none, the whole of LLaVA-1.5-7B's sizes",
    "memory": "memory of an extraction, by the GPU's allocator",
    "generation": "responses in bfloat16",
}
"""What is to be measured on a GPU, by topic."""


@dataclass(frozen=True)
class Target:
    """What a figure should be: at least or at most a number."""

    sense: Literal["at least", "at most"]
    value: float

    def __str__(self) -> str:
        return f"{'≥' if self.sense == 'at least' else '≤'} {self.value:g}"

    def met(self, figure: float) -> bool:
        """Whether a figure reaches it; one that is not a number does not."""
        return figure >= self.value if self.sense == "at least" else figure <= self.value


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: the job.
        baseline: what it is compared with, and its median time.
        ours: the engine's way, and its median time.
        figure: ratios, or a single number that has no spread.
        target: what the figure should be, or None where nothing was promised.
        note: what a reader must know.
    """

    what: str
    baseline: str
    ours: str
    figure: Ratio | float
    target: Target | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``yes``, ``no``, or that the spread leaves it open; empty without a target."""
        if self.target is None:
            return ""
        if not isinstance(self.figure, Ratio):
            return "yes" if self.target.met(self.figure) else "no"
        answer = "yes" if self.target.met(self.figure.median) else "no"
        low, high = (self.target.met(quartile) for quartile in self.figure.quartiles)
        return answer if low == high else f"{answer}, open"

    @property
    def cells(self) -> tuple[str, ...]:
        """What stands in the table."""
        if isinstance(self.figure, Ratio):
            low, high = self.figure.quartiles
            figure = f"{_number(self.figure.median)} [{_number(low)}, {_number(high)}]"
        else:
            figure = _number(self.figure)
        target = str(self.target) if self.target else ""
        return (self.what, self.baseline, self.ours, figure, target, self.verdict, self.note)


def faster(
    timings: Timings,
    baseline: str,
    *,
    what: str,
    ours: str = "ours",
    target: float | None = None,
    note: str = "",
) -> Row:
    """A row whose ratio is the baseline's time over ours: how many times faster we are."""
    wanted = Target("at least", target) if target is not None else None
    return _timed(timings, baseline, ours, what, timings.ratio(baseline, ours), wanted, note)


def cost(
    timings: Timings,
    baseline: str,
    *,
    what: str,
    ours: str = "ours",
    target: float | None = None,
    note: str = "",
) -> Row:
    """A row whose ratio is our time over the baseline's: what something costs."""
    wanted = Target("at most", target) if target is not None else None
    return _timed(timings, baseline, ours, what, timings.ratio(ours, baseline), wanted, note)


def _timed(
    timings: Timings,
    baseline: str,
    ours: str,
    what: str,
    ratio: Ratio,
    target: Target | None,
    note: str,
) -> Row:
    before, after = (f"{name} {_seconds(timings.median(name))}" for name in (baseline, ours))
    return Row(what, before, after, ratio, target, note)


def check(what: str, against: str, figure: float, target: Target | None, note: str = "") -> Row:
    """A row on whether two ways gave the same."""
    return Row(f"check: {what}", against, "ours", figure, target, note)


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 0.01:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.1e}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    heads = ("what", "baseline", "ours", "ratio", "target", "met", "note")
    lines = [heads, ("---",) * len(heads), *(row.cells for row in rows)]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def machine(device: torch.device) -> str:
    """The processor's model and how much of it there is; no name of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} in use"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())


def versions() -> str:
    """Of Python and of the packages that matter, those installed."""
    found = [f"Python {platform.python_version()}"]
    for name in VERSIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def section(
    title: str, setting: str, rows: Sequence[Row], *, device: torch.device, rounds: int, load: float
) -> str:
    """A topic's part of the file: what was measured, where and when, and the table.

    Args:
        title: the topic.
        setting: model and job, in a sentence or two.
        rows: of the table.
        device: where it ran.
        rounds: counted ones.
        load: of the machine before it began: running processes, a minute's mean.
    """
    where = f"{machine(device)}; {versions()}; {date.today().isoformat()}"
    how = f"{rounds} rounds; load before the start {load:.1f}"
    return f"## {title}\n\n{setting}\n\n{where}; {how}.\n\n{table(rows)}\n"


def write(path: Path, name: str, text: str) -> None:
    """Put a part into the file, in the place of the part of that name if there is one.

    The file's last part lists what of :data:`ON_GPU` is still open.
    """
    whole = path.read_text(encoding="utf-8") if path.exists() else HEAD
    if said := _found(whole, "open"):
        whole = whole.replace(said, "")
    part = _part(name, text)
    old = _found(whole, name)
    whole = whole.replace(old, part) if old else f"{whole.rstrip()}\n\n{part}"
    if missing := [f"- {x}" for topic, x in ON_GPU.items() if not _found(whole, f"{topic} cuda")]:
        head = "## Not measured\n\nOn a GPU, for want of one; `make benchmarks` there adds them:"
        rest = _part("open", "\n".join([head, "", *missing]))
        whole = f"{whole.rstrip()}\n\n{rest}"
    path.write_text(whole, encoding="utf-8")


def _part(name: str, text: str) -> str:
    return f"<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->\n"


def _found(whole: str, name: str) -> str:
    """The part of a name as it stands in the file; empty if it does not."""
    found = re.search(rf"<!-- {re.escape(name)} -->\n.*?<!-- /{re.escape(name)} -->\n", whole, re.S)
    return found.group() if found else ""
