"""Fingerprints: a few digits that tell whether two models give the same responses."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrm_utils.edits import tensor_version

CHUNK, BLOCK = 2**20, 1024
"""Of a fingerprint: weights that are read at a time, and pairs of weights in each sum."""


def fingerprint(model: Any, settings: Mapping[str, Any] | None = None) -> str:
    """16 hex digits of the configuration, the weights (:func:`_checksums`), and settings."""
    config = {**model.config.to_dict(), **(settings or {})}
    for volatile in ("_name_or_path", "transformers_version", "dtype"):
        config.pop(volatile, None)
    for part in config.values():
        if isinstance(part, dict) and "_name_or_path" in part:
            part["_name_or_path"] = ""  # where a part came from is a path of the machine
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        for values in _checksums(model, name, parameter):
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def _checksums(model: nn.Module, name: str, parameter: Tensor) -> Iterator[Tensor]:
    """Weighted sums of a parameter's float32 bit patterns, on the CPU; fetched if offloaded.

    Integer sums, which wrap round, are equal on every device.
    """
    if parameter.device.type != "meta":
        values = parameter.detach().flatten()
        places = torch.arange(1, 2 * BLOCK, 2, device=values.device)
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK].float()
            if short := -len(chunk) % (2 * BLOCK):  # of a last chunk: to pad is to copy
                chunk = F.pad(chunk, (0, short))
            yield (chunk.view(torch.int64).view(-1, BLOCK) * places).sum(-1).cpu()
        return
    owner = model.get_submodule(name.rpartition(".")[0])
    if not hasattr(owner, "_hf_hook"):
        return  # a model on "meta" without weights, made for its shape
    from accelerate.utils import align_module_device

    with align_module_device(owner, "cpu"):
        yield from _checksums(model, name, model.get_parameter(name))


def weights_state(parameters: Iterable[Tensor]) -> tuple[Any, ...]:
    """A cheap value that differs when weights have changed.

    It detects every in-place change that torch counts, and replaced weights. Of changes that
    torch does not count (``weight.data.mul_(2)``), it detects those that reach one of a few
    sampled values. It detects no change of offloaded weights.
    """
    counted = []
    looked: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.device.type != "meta":
            values = parameter.detach().flatten()
            some = looked.setdefault((values.device, values.dtype), [])
            some.append(values[:: len(values) // 8 + 1])
            counted.append((parameter.data_ptr(), tensor_version(parameter)))
    return (*counted, *(torch.cat(x).double().cpu().numpy().tobytes() for x in looked.values()))
