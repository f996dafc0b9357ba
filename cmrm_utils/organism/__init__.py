"""The bundled model organism: its world, its pictures, its training recipe, its checkpoints."""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Where the bundled organisms lie, one folder each."""
