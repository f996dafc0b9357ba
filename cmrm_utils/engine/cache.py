"""Keys and values of the rows of a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from cmrm_utils.models import VLM

Pair = tuple[Tensor, Tensor]
"""Keys and values, ``(rows, heads, tokens, size)`` each."""


SPARE = 64
"""Tokens by which a full cache layer grows."""


class RoomyLayer(DynamicLayer):
    """Keys and values in buffers with room for further tokens, so that a step copies no old ones.

    Args:
        buffers: of keys and values.
        length: number of tokens that are filled.
    """

    def __init__(self, buffers: Pair | None = None, length: int = 0) -> None:
        super().__init__()
        if buffers is not None:
            self.lazy_initialization(*buffers)
            self._hold(buffers, length)

    def _hold(self, buffers: Pair, length: int) -> None:
        self._buffers = buffers
        keys, values = (buffer[:, :, :length] for buffer in buffers)
        self.keys, self.values = self.filled = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Pair:
        """Append tokens; return the keys and values of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._hold((key_states[:, :, :0], value_states[:, :, :0]), 0)
        start = self.filled[0].shape[2]
        end = start + key_states.shape[2]
        buffers = self._buffers
        if end > buffers[0].shape[2]:
            keys, values = (functional.pad(x, (0, 0, 0, end + SPARE - start)) for x in self.filled)
            buffers = (keys, values)
        for buffer, new in zip(buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self._hold(buffers, end)
        return self.filled

    def keep(self, holes: Tensor, movers: Tensor, rows: int, first: int) -> None:
        """Move rows into holes; keep the first ``rows`` rows, and tokens from ``first`` on."""
        length = self.filled[0].shape[2] - first
        for buffer in self._buffers:
            if len(holes):
                buffer[holes.to(buffer.device)] = buffer[movers.to(buffer.device)]
        keys, values = (buffer[:rows, :, first:] for buffer in self._buffers)
        self._hold((keys, values), length)

    def join(self, other: "RoomyLayer", width: int) -> None:
        """Append another layer's rows, both left-padded to ``width`` tokens."""
        keys, values = (
            torch.cat([functional.pad(x, (0, 0, width - x.shape[2], 0)) for x in pair])
            for pair in zip(self.filled, other.filled, strict=True)
        )
        self._hold((keys, values), width)


def can_share(vlm: VLM) -> bool:
    """Whether a model's cache can be cut and joined, so that rows share beginnings and leave.

    Models with sliding windows or recurrent layers cannot; nor can those whose processor writes
    more than the image's tokens, or whose attention differs by kind of token.
    """
    layers = DynamicCache(config=vlm.model.config.get_text_config(decoder=True)).layers
    cuts = all(type(layer) is DynamicLayer for layer in layers)
    expands = not vlm.sees_images or vlm.placeholder is not None
    return vlm.way == "shared" and cuts and expands


def new_cache(vlm: VLM) -> Cache:
    """An empty cache: one that can be cut and joined, or the model's own."""
    if can_share(vlm):
        return Cache(layer_class_to_replicate=RoomyLayer)
    return DynamicCache(config=vlm.model.config.get_text_config(decoder=True))


def stacked(rows: Sequence[Sequence[Pair]], width: int, room: int) -> list[Pair]:
    """Each layer's buffers: ``rows`` keys and values, left-padded to ``width``, and ``room``."""
    buffers = []
    for pairs in zip(*rows, strict=True):
        sides = []
        for side in zip(*pairs, strict=True):
            # Rows of one beginning have the same tensor, which is padded once.
            padded = {x: functional.pad(x, (0, 0, width - x.shape[2], room)) for x in set(side)}
            sides.append(torch.cat([padded[x] for x in side]))
        buffers.append((sides[0], sides[1]))
    return buffers
