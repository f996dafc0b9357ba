"""Checkpoints: an edit baked in, an original one converted."""
