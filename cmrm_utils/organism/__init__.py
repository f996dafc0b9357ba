"""The bundled model organism: its world, its pictures, its training recipe, its checkpoint."""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Where the bundled organism lies, in a folder of its own."""

MADE = Path(__file__).parent.parent.parent / "organisms"
"""Where organisms lie that were trained here."""


def organism_folders() -> dict[str, Path]:
    """The folders of the organisms by name: the bundled one, and those trained here."""
    return {p.parent.name: p.parent for m in (MADE, CHECKPOINTS) for p in m.glob("*/config.json")}
