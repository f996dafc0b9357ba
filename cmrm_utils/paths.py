"""Paths of the repository, its notebooks, the organisms' checkpoints and the data sets."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository. Relative run folders start here, wherever a notebook runs."""

NOTEBOOKS = ROOT / "notebooks"

PROFILES = NOTEBOOKS / "profiles"

STORED = NOTEBOOKS / "stored"
"""Results that the repository holds: metrics of the default run, tables of larger runs."""

CHECKPOINTS = Path(__file__).parent / "organism" / "checkpoints"
"""The folder that holds the bundled organism's own folder."""

PARTS = Path(__file__).parent / "bundled" / "parts"
"""The folder that holds a folder for each bundled model: its projector, its adapter, its card."""

ORGANISMS = ROOT / "organisms"
"""The folder of the models that were trained on this machine."""


def organism_folders() -> dict[str, Path]:
    """The organisms' folders by name: the bundled one, and those trained on this machine."""
    return {
        p.parent.name: p.parent for m in (ORGANISMS, CHECKPOINTS) for p in m.glob("*/config.json")
    }


def bundled_folders() -> dict[str, Path]:
    """The folders of parts of the bundled models by name, and of those trained on this machine."""
    folders = (
        file.parent for m in (PARTS, ORGANISMS) for file in m.glob("*/projector.safetensors")
    )
    return {folder.name: folder for folder in folders}


def data_home(data_dir: str | Path | None = None) -> Path:
    """The folder of all data: ``data_dir``, else ``$CMRM_DATA``, else ``data`` in the repository.

    It has a folder for each set's local copy (``vlsafe/``, ``figstep/`` ...), and ``coco/`` for
    COCO's images.
    """
    return Path(data_dir or os.environ.get("CMRM_DATA") or ROOT / "data")


def cache_home() -> Path:
    """The folder of models that are made at first use: ``$CMRM_CACHE``, else ``~/.cache/cmrm``."""
    return Path(os.environ.get("CMRM_CACHE") or Path.home() / ".cache" / "cmrm")
