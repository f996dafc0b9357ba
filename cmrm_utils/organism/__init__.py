"""The bundled model organism: its world, its pictures, its training recipe."""
