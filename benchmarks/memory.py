"""How much memory an extraction takes, and what it grows with."""

import gc
import weakref
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.report import Row, Target
from benchmarks.setting import TEXT_TOKENS, Setting, cold, samples
from cmrm_utils import Trial, hidden_states
from cmrm_utils.engine import inputs

TITLE = "Memory of an extraction"
FEW, MANY, BATCH = 32, 160, 8
BOUND = 2**23
"""Bytes for encoded images in the last row; in use it is ``engine.inputs.ENCODED_BYTES``."""


def setting_text(_setting: Setting) -> str:
    """What is measured."""
    return (
        f"Peak of allocated tensors above the model, batches of {BATCH}. Growth is what each "
        f"sample more adds, from {FEW} to {MANY} (own images: to {MANY // 2}): the "
        "states asked for are layers x hidden x 4 bytes a sample. On the CPU "
        "the bytes of all live tensors are followed, on a GPU its allocator is asked. "
        "Not timings: one run each, the same in each."
    )


def run(setting: Setting) -> list[Row]:
    """Rows of the table."""
    vlm = setting.vlm
    states = len(vlm.layers) * vlm.hidden_size * 4
    blank = _growth(setting, "blank", TEXT_TOKENS)
    longer = _growth(setting, "blank", 4 * TEXT_TOKENS)
    own = _growth(setting, "own", TEXT_TOKENS)
    with patch.object(inputs, "ENCODED_BYTES", BOUND):
        bounded = _growth(setting, "own", TEXT_TOKENS)
    asked = f"states {_bytes(states)}"
    return [
        Row(
            "growth a sample, `blank`",
            asked,
            f"growth {_bytes(blank)}",
            blank / states,
            Target("at most", 3.0),
            "each batch's states, and all of them in the order asked for",
        ),
        Row(
            "growth a sample, prompts of four times the text",
            f"as long as the others {_bytes(blank)}",
            f"growth {_bytes(longer)}",
            longer / blank,
            Target("at most", 1.1),
            "the prompt's length adds nothing a sample",
        ),
        Row(
            "growth a sample, own images",
            asked,
            f"growth {_bytes(own)}",
            own / states,
            Target("at most", 3.0),
            "encoded images are kept for other trials, within a bound",
        ),
        Row(
            "growth a sample, own images, past the bound",
            asked,
            f"growth {_bytes(bounded)}",
            bounded / states,
            Target("at most", 3.0),
            f"the bound set to {_bytes(BOUND)}, which {FEW} samples exceed",
        ),
    ]


def _growth(setting: Setting, image: str, tokens: int) -> float:
    """Bytes by which the peak rises for each sample more."""
    end = MANY if image == "blank" else MANY // 2  # own images share nothing and take long
    few, many = (_peak(setting, count, image, tokens) for count in (FEW, end))
    return (many - few) / (end - FEW)


def _peak(setting: Setting, count: int, image: str, tokens: int) -> int:
    """Most bytes allocated at once, above what there was before."""
    vlm = cold(setting.vlm)
    trials = [Trial(sample, image) for sample in samples(count, tokens=tokens)]
    gc.collect()
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        hidden_states(vlm, trials, batch_size=BATCH)
        return torch.cuda.max_memory_allocated() - before
    with _Allocations() as allocations:
        hidden_states(vlm, trials, batch_size=BATCH)
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Follows the storages of all tensors that operations make while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_key(t) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in given | self._known.keys():
                storage = tensor.untyped_storage()
                key = _key(tensor)
                self._known[key] = storage.nbytes()
                self._now += storage.nbytes()
                weakref.finalize(storage, self._free, key)
        self.peak = max(self.peak, self._now)
        return made

    def _free(self, key: int) -> None:
        self._now -= self._known.pop(key)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(count: float) -> str:
    return f"{count / 1024:.3g} KiB" if count < 2**20 else f"{count / 2**20:.3g} MiB"
