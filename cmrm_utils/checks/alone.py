"""Transformers alone: one prompt at a time, with hooks of its own, through all layers or the first.

Nothing here uses the engine or its hooks, which are held against it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn import ModuleList

from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM
from cmrm_utils.trials import Trial

FIRST = 3
"""The fewest decoder layers that a batch runs through in a check, which has ten seconds."""


def layers_path(vlm: VLM) -> str:
    """The name of the list of decoder layers within the model."""
    first = next(name for name, part in vlm.model.named_modules() if part is vlm.layers[0])
    return first.rpartition(".")[0]


def few_layers(vlm: VLM) -> int:
    """How many of the first layers a batch is looked at in: one of each kind is among them."""
    types = getattr(vlm.model.config.get_text_config(decoder=True), "layer_types", None)
    makes = (tuple(map(type, layer.modules())) for layer in vlm.layers)
    kinds = list(zip(makes, types or repeat(None), strict=False))
    return min(max(FIRST, *(kinds.index(kind) + 1 for kind in kinds)), len(kinds))


@contextmanager
def only_first(vlm: VLM, count: int) -> Iterator[None]:
    """Cut the decoder off after its first layers, until the end of a ``with`` block."""
    owner, _, name = layers_path(vlm).rpartition(".")
    part, first = vlm.model.get_submodule(owner), vlm.layers[:count]
    text = vlm.model.config.get_text_config(decoder=True)
    changes: list[tuple[Any, str, Any]] = [(vlm, "layers", first), (part, name, ModuleList(first))]
    for config in {id(each): each for each in (text, getattr(part, "config", text))}.values():
        changes.append((config, "num_hidden_layers", count))
        if getattr(config, "layer_types", None):
            changes.append((config, "layer_types", config.layer_types[:count]))
    with ExitStack() as stack:
        for thing, attribute, value in changes:
            stack.callback(setattr, thing, attribute, getattr(thing, attribute))
            setattr(thing, attribute, value)
        yield


@contextmanager
def _watching(vlm: VLM, vectors: Tensor | None = None) -> Iterator[list[tuple[int, Tensor]]]:
    """The layers' numbers and outputs in the order in which they run, with vectors added."""
    seen: list[tuple[int, Tensor]] = []

    def watch(number: int, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if vectors is not None:
            states = states + vectors[number].to(states.device, states.dtype)
        seen.append((number, states[:, -1].float().cpu()))
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def hook(number: int) -> Callable[..., Any]:
        return lambda _module, _args, output: watch(number, output)

    with ExitStack() as handles:
        for number, layer in enumerate(vlm.layers):
            handles.enter_context(layer.register_forward_hook(hook(number)))
        yield seen


def states_alone(vlm: VLM, trial: Trial, copies: int = 1) -> Tensor:
    """What transformers alone gives at the last prompt token: ``(copies, layers, hidden)``.

    Raises:
        InputError: not every layer runs once, in order; states are not numbers.
    """
    inputs = vlm.inputs([trial.text] * copies, [trial.load_image()] * copies)
    with _watching(vlm) as seen:
        vlm.core(**inputs, use_cache=False)
    ran, count = [number for number, _ in seen], len(vlm.layers)
    if ran != list(range(count)):
        prompt = "with an image" if trial.has_image else "without an image"
        raise InputError(
            f"{len(set(ran))} of its {count} decoder layers run in order on a prompt {prompt}, "
            "so states of its layers cannot be compared: use another model"
        )
    states = torch.stack([states for _, states in seen], dim=1)
    if not states.isfinite().all():
        raise InputError("its states are not numbers: load it in another dtype")
    return states


def reply_alone(
    vlm: VLM, trial: Trial, vectors: Tensor, steps: int
) -> tuple[list[int], Tensor, Tensor]:
    """What transformers alone generates with vectors added to its layers' outputs.

    Returns:
        Token ids, each one's logits, and the states at the last prompt token
        ``(1, layers, hidden)``, vectors included.
    """
    inputs = vlm.inputs([trial.text], [trial.load_image()])
    with _watching(vlm, vectors) as seen:
        out = vlm.model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    ids = out.sequences[0, inputs["input_ids"].shape[1] :]
    states = torch.stack([states for _, states in seen[: len(vlm.layers)]], dim=1)
    return ids.tolist(), torch.cat(out.logits).float().cpu(), states
