"""The number of rows that fit into memory."""

import logging
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from cmrm_utils.engine.batch import Row
from cmrm_utils.engine.inputs import Prompt, forget_images, images_of
from cmrm_utils.engine.plan import alike, row_of
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM
from cmrm_utils.processors import out_of_memory

Made = TypeVar("Made")


_log = logging.getLogger(__name__)


class Size:
    """The number of rows in a batch: as many as asked for, or fewer if memory holds fewer.

    Args:
        vlm: the model.
        rows: as many as asked for; by default the model's ``batch_size``.

    Raises:
        InputError: fewer than one row.
    """

    def __init__(self, vlm: VLM, rows: int | None) -> None:
        if rows is not None and rows < 1:
            raise InputError(f"batch_size must be 1 or more, not {rows}")
        self._vlm = vlm
        self.rows = 1 if vlm.way == "plain" else rows or vlm.batch_size
        self._tokens = _memory(vlm) // token_bytes(vlm)
        self._longest = 1
        self._last: Prompt | None = None

    @property
    def limit(self) -> int:
        """Most rows in a batch, if all are as long as the longest that has entered so far."""
        return max(1, min(self.rows, self._tokens // self._longest))

    def begin(self, *rows: Prompt) -> None:
        """Start a batch; if a row does not fit alone, the error names the last of ``rows``."""
        self._longest, self._last = 1, rows[-1] if rows else None

    def entering(
        self, queue: Iterable[Prompt], most: int, *, inside: int = 0, new: int = 0
    ) -> list[Row]:
        """The next rows of a batch, with encoded images, as many as memory holds.

        Args:
            queue: the trials that have not run yet.
            most: how many rows may enter.
            inside: how many rows the batch has already.
            new: how many tokens each row will generate.

        Returns:
            Rows of which all have a shared beginning, or none has one; at least one row if the
            batch is empty.
        """
        rows: list[Row] = []
        image_bytes: dict[str, int] = {}
        for prompt in alike(queue, most):
            key, images = prompt.image_key, images_of(self._vlm)
            fresh = prompt.image_at is not None and key not in image_bytes
            if rows and fresh and not images.has_room(sum(image_bytes.values())):
                break
            self._last = prompt
            row = row_of(self._vlm, prompt)
            self._longest = max(self._longest, len(row.tokens) + new)
            if inside + len(rows) >= self.limit:
                break
            if row.tokens.image is not None:
                image_bytes[key] = row.tokens.image.nbytes
            rows.append(row)
        return rows

    def attempt(self, job: Callable[[], Made]) -> Made | None:
        """The result of a job; None if memory ran out, and the limit is halved from then on.

        Raises:
            torch.OutOfMemoryError: a single row did not fit; the error names the sample.
        """
        try:
            return job()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # a traceback keeps the batch's tensors alive
        last = self._last
        images = forget_images(self._vlm)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.rows > 1:
            self.rows //= 2
            self._vlm.batch_size = min(self._vlm.batch_size, self.rows)
            _log.warning("out of memory: going on with batches of %d", self.rows)
        elif last is None:
            raise failure
        elif not images.holds_other(last.image_key):
            trial = last.trial
            raise torch.OutOfMemoryError(
                f"sample {trial.sample.id} (image {trial.image}): no memory even for it alone "
                f"({failure})"
            ) from failure
        return None


def _memory(vlm: VLM) -> int:
    """Bytes available to batches; the same in every process on the machine."""
    places = {p.device for p in vlm.model.parameters() if p.device.type == "cuda"}
    if places:
        whole = sum(torch.cuda.get_device_properties(place).total_memory for place in places)
        return int(max(0.8 * (whole - vlm.model.get_memory_footprint()), 0.1 * whole))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def token_bytes(vlm: VLM) -> int:
    """Most bytes per token: keys and values twice, and one layer's intermediate states."""
    config = vlm.model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * vlm.head_size
    passing = 8 * config.hidden_size + 4 * config.intermediate_size
    return (2 * cache + passing) * vlm.model.dtype.itemsize
