"""``python -m benchmarks``: run the benchmarks and write their table."""

import argparse
import os
from importlib import import_module
from pathlib import Path

import cmrm_utils  # noqa: F401  # before torch: it sets how torch's threads wait

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from benchmarks import peers, report
from benchmarks.setting import Setting, load

TOPICS = (
    "extraction",
    "generation",
    "sweep",
    "steering",
    "memory",
    "images",
    "baking",
    "busy",
    "bfloat16",
)
LARGE = ("full_size",)
"""Only run when asked for."""


def main() -> None:
    """Read the arguments, run, print as it goes, and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", choices=TOPICS + LARGE, action="append", help="a topic; may be repeated"
    )
    parser.add_argument("--device", help="cpu or cuda; a GPU if there is one")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="the file to write into")
    asked = parser.parse_args()
    if asked.rounds < 2:
        parser.error("--rounds must be 2 or more: a single timing has no spread")
    device = torch.device(asked.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    setting = Setting(device, asked.rounds)
    for name in asked.only or TOPICS:
        topic = import_module(f"benchmarks.{name}")
        before = load()
        rows = topic.run(setting)
        text = report.section(
            f"{topic.TITLE} ({device.type})",
            f"{setting.text} {topic.setting_text(setting)}",
            rows,
            device=device,
            rounds=asked.rounds,
            load=before,
        )
        report.write(asked.out, f"{name} {device.type}", text)
        print(text, flush=True)
        if name == "extraction":
            report.write(asked.out, "prior art", peers.notes())


main()
