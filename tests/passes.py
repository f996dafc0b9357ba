"""What goes through a model."""

from contextlib import contextmanager


@contextmanager
def watched(vlm):
    """``(rows, tokens)`` of every pass through the first decoder layer."""
    seen = []
    handle = vlm.layers[0].register_forward_hook(
        lambda module, args, output: seen.append(tuple(args[0].shape[:2]))
    )
    try:
        yield seen
    finally:
        handle.remove()
