"""Other ways to get the last prompt token's states, each as its users would write it.

All take a model and a list of ``(text, picture or None)`` and give ``(prompts, layers, hidden)``.
Those of the packages are the packages' own recorders around the model's own forward pass, as none
of them takes pictures in its extraction.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.setting import batches
from cmrm_utils import VLM

Prompts = Sequence[tuple[str, Image.Image | None]]

BATCH = 8
"""Prompts a batch, for all who batch."""

NOTES = (
    (
        "steering-vectors 0.12",
        "hooks copy all tokens' states at every layer; text only, one prompt a batch by default; "
        "asks for transformers below 5",
        "{steering_vectors}: its recorder around a LLaVA's forward pass, in batches",
    ),
    (
        "nnsight 0.8",
        "traces a forward pass; what is saved is one's own choice",
        "{nnsight}: last token of each layer saved, in batches",
    ),
    (
        "xl-vlms (mshukor/xl-vlms)",
        "one prompt at a time, logits of all tokens, all tokens' states to the CPU",
        "ran: its way written plainly, as it is scripts and no package",
    ),
    (
        "repeng 0.4",
        "batches with `output_hidden_states=True`, LM head included; text only; asks for numpy "
        "below 2",
        "not run",
    ),
    (
        "pyvene 0.1",
        "interventions on named modules of models that it has a mapping for",
        "not run: its LLaVA mapping has transformers 4's module names",
    ),
    ("EasySteer", "steering inside vLLM, with vLLM's batches", "not run: needs vLLM"),
)
"""Peer, its way, what became of it here."""

PACKAGES = ("steering_vectors", "nnsight")
"""Peers that must be installed: `pip install --no-deps steering-vectors`, `pip install nnsight`."""


def installed() -> list[str]:
    """The packages among them that are here."""
    return [name for name in PACKAGES if find_spec(name)]


def notes() -> str:
    """What there is to compare with, and which of it ran."""
    here = installed()
    fate = {name: "ran" if name in here else "not installed" for name in PACKAGES}
    rows = [("peer", "its way of extraction", "here"), ("---",) * 3]
    rows += [(peer, way, became.format(**fate)) for peer, way, became in NOTES]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"## Prior art\n\n{lines}\n\nThe extraction code of steering-vectors, xl-vlms and repeng "
        "was read: each runs every prompt from its first token on. The rest is by documentation, "
        "and for nnsight by using it."
    )


def _inputs(vlm: VLM, prompts: Prompts) -> dict[str, Tensor]:
    """By the processor, left-padded, with positions that make padding exact."""
    texts = [text for text, _ in prompts]
    made = vlm.inputs(texts, [picture for _, picture in prompts])
    return {**made, "position_ids": vlm.positions(made)}


def _apart(prompts: Prompts) -> list[Prompts]:
    """Batches in which all have a picture, or none has."""
    with_picture = [p for p in prompts if p[1] is not None]
    without = [p for p in prompts if p[1] is None]
    return [*batches(with_picture, BATCH), *batches(without, BATCH)]


@torch.inference_mode()
def usual(vlm: VLM, prompts: Prompts) -> Tensor:
    """One at a time, all states of all tokens, logits of all tokens.

    The last layer's is after the model's final norm, as ``output_hidden_states`` has it.
    """
    found = []
    for prompt in prompts:
        out = vlm.model(**_inputs(vlm, [prompt]), output_hidden_states=True)
        found.append(torch.stack([state[0, -1] for state in out.hidden_states[1:]]).float().cpu())
    return torch.stack(found)


@torch.inference_mode()
def fair(vlm: VLM, prompts: Prompts) -> Tensor:
    """Batched, only the last token's states kept, no logits and no cache."""
    found: list[Tensor] = []
    for batch in _apart(prompts):
        states: list[Tensor] = []

        def keep(_module: nn.Module, _args: object, output: Tensor, states: list = states) -> None:
            states.append(output[:, -1].clone())

        handles = [layer.register_forward_hook(keep) for layer in vlm.layers]
        try:
            vlm.model.model(**_inputs(vlm, batch), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        found.append(torch.stack(states, dim=1).float().cpu())
    return torch.cat(found)


@torch.inference_mode()
def xl_vlms(vlm: VLM, prompts: Prompts) -> Tensor:
    """One at a time, hooks that copy all tokens' states to the CPU, logits of all tokens."""
    found = []
    for prompt in prompts:
        states: list[Tensor] = []

        def keep(_module: nn.Module, _args: object, output: Tensor, states: list = states) -> None:
            states.append(output.detach().cpu().clone())

        handles = [layer.register_forward_hook(keep) for layer in vlm.layers]
        try:
            _ = vlm.model(**_inputs(vlm, [prompt])).logits
        finally:
            for handle in handles:
                handle.remove()
        found.append(torch.stack([state[0, -1] for state in states]).float())
    return torch.stack(found)


@torch.inference_mode()
def steering_vectors(vlm: VLM, prompts: Prompts) -> Tensor:
    """The package's recorder, in batches."""
    from steering_vectors import record_activations

    layers = {"decoder_block": "model.language_model.layers.{num}"}
    found = []
    for batch in _apart(prompts):
        with record_activations(vlm.model, layer_config=layers) as recorded:
            vlm.model(**_inputs(vlm, batch))
        states = [recorded[layer][0][:, -1] for layer in sorted(recorded)]
        found.append(torch.stack(states, dim=1).float().cpu())
    return torch.cat(found)


@torch.inference_mode()
def nnsight(vlm: VLM, prompts: Prompts) -> Tensor:
    """The package's trace, in batches, the last token of each layer saved."""
    import nnsight as package

    traced = package.NNsight(vlm.model)
    found = []
    for batch in _apart(prompts):
        inputs = _inputs(vlm, batch)
        with traced.trace(**inputs):
            layers = traced.model.language_model.layers
            states = package.save([layer.output[:, -1] for layer in layers])
        found.append(torch.stack(list(states), dim=1).float().cpu())
    return torch.cat(found)
