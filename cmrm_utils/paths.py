"""Where things lie: the repository, its notebooks, the organisms' checkpoints, data sets."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository; relative run folders are taken from here, wherever a notebook runs."""

NOTEBOOKS = ROOT / "notebooks"

PROFILES = NOTEBOOKS / "profiles"

STORED = NOTEBOOKS / "stored"
"""Results kept in the repository: metrics of the default run, tables of larger ones."""

CHECKPOINTS = Path(__file__).parent / "organism" / "checkpoints"
"""Where the bundled organism lies, in a folder of its own."""

MADE = ROOT / "organisms"
"""Where organisms lie that were trained here."""


def organism_folders() -> dict[str, Path]:
    """The folders of the organisms by name: the bundled one, and those trained here."""
    return {p.parent.name: p.parent for m in (MADE, CHECKPOINTS) for p in m.glob("*/config.json")}


def data_home(data_dir: str | Path | None = None) -> Path:
    """The folder of all data: the one given, else ``$CMRM_DATA``, else ``data`` beside the module.

    Local copies lie in it by set (``vlsafe/``, ``figstep/`` ...), COCO's images in ``coco/``.
    """
    return Path(data_dir or os.environ.get("CMRM_DATA") or ROOT / "data")
