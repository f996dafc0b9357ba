"""An edit folded into a plain checkpoint: biases where a hook would have added.

A hook adds a vector to a decoder layer's output on every token. A bias of that layer's
``mlp.down_proj`` does the same, since that projection is the last to write to the residual stream
there. Of the decoders in transformers only Llama's has such biases (``mlp_bias``), so any decoder
that computes as Llama does is written as Llama.
"""

import copy
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from cmrm_utils.edits import Edit
from cmrm_utils.errors import InputError
from cmrm_utils.loading import quiet
from cmrm_utils.models import VLM
from cmrm_utils.processors import load_processor
from cmrm_utils.results.text import markdown_table, rendered
from cmrm_utils.store import check_free
from cmrm_utils.vectors import ShiftVectors

DECODERS = ("llama", "mistral", "qwen2")
"""Decoders that compute as Llama does; Mistral and Qwen2 only without a sliding window."""


SEEING = (
    "llava",
    "llava_next",
    "llava_onevision",
    "vipllava",
    "idefics3",
    "smolvlm",
    "internvl",
    "mistral3",
    "deepseek_vl",
)
"""Models with vision that can be baked, by ``model_type``: their class takes any decoder."""


FOLDED = ("add", "strength", "tokens", "sample_ids", "settings", "place")
"""What of an :class:`Edit` is understood here; an edit that has more is no mere addition."""


PROBE = "Hello,  WORLD! It's 3.14 o'clock;\n\tnaïve façade → 東京"
"""A text that different kinds of tokenizer split differently."""


def bake(vlm: VLM, edit: Edit, path: str | Path, *, vectors: ShiftVectors | None = None) -> None:
    """Write a checkpoint that behaves as the model under the edit does, without a hook.

    The folder loads with transformers alone, processor and chat template included, in the
    precision that ``vlm`` has in memory. Baking a baked model adds the new edit to the old one.

    Weights are stored in the narrowest precision that holds each of them exactly, the edited
    biases in float32, since rounding these to 16 bits can be seen in the logits.

    Args:
        vlm: the model.
        edit: a dataset-level edit of all tokens.
        path: the folder to make; it appears complete or not at all.
        vectors: what the edit was made of, for the model card.

    Raises:
        InputError: the edit or the model cannot be folded, the vectors are of another model, or
            the folder is not empty or cannot be written.
    """
    path = Path(path)
    check_edit(edit)
    check_free(path)
    _check_model(vlm, edit, vectors)
    model, stored = _folded(vlm, edit)
    with _draft(path) as draft, quiet():
        model.save_pretrained(draft, max_shard_size="5GB")
        # transformers states the precision of the file, and loads in what is stated.
        model.config.dtype = vlm.model.dtype
        model.config.save_pretrained(draft)
        vlm.processor.save_pretrained(draft)
        reads = _check_processor(vlm, draft)
        card = _card(vlm, edit, vectors, stored, reads)
        (draft / "README.md").write_text(card, encoding="utf-8")


def check_edit(edit: Edit) -> None:
    """Raise :class:`InputError` for an edit that no bias can stand for."""
    if edit.sample_ids is not None:
        raise InputError(
            "a sample-level edit cannot be baked: a checkpoint has one bias for all samples"
        )
    if edit.tokens != "all":
        raise InputError(
            f"an edit of tokens {edit.tokens!r} cannot be baked: a bias acts on every token"
        )
    if edit.place != "layer":
        raise InputError(
            f"an edit of place {edit.place!r} cannot be baked: its bias acts on layers' outputs"
        )
    for each in fields(edit):
        if each.name not in FOLDED and getattr(edit, each.name) is not each.default:
            raise InputError(
                f"an edit with {each.name!r} cannot be baked: a bias only adds the same vector"
            )


def _check_model(vlm: VLM, edit: Edit, vectors: ShiftVectors | None) -> None:
    config, text = vlm.model.config, vlm.model.config.get_text_config()
    kind = config.model_type
    if kind not in (*SEEING, *DECODERS) or text.model_type not in DECODERS:
        over = "" if text is config else f" (decoder: {text.model_type})"
        raise InputError(
            f"{vlm.name}: {kind}{over} cannot be baked, since its decoder layers have no bias to "
            f"hold an edit; {', '.join(SEEING)} and language models can, over a decoder of "
            f"{', '.join(DECODERS)}"
        )
    windows = getattr(text, "layer_types", None) or []
    if text.model_type != "llama" and (text.sliding_window or "sliding_attention" in windows):
        raise InputError(
            f"{vlm.name}: {text.model_type} with a sliding window cannot be baked: it is written "
            "as Llama, which has none"
        )
    if getattr(vlm.model, "is_quantized", False) or hasattr(config, "quantization_config"):
        raise InputError(f"{vlm.name}: quantised weights cannot be baked; load it without bits")
    for name, parameter in vlm.model.named_parameters():
        if not parameter.is_floating_point():
            raise InputError(f"{vlm.name}: {name} is {parameter.dtype}: quantised, cannot be baked")
        if parameter.device.type == "meta":
            raise InputError(f"{vlm.name}: {name} is offloaded; load it without offloading to bake")
    if vectors is not None and (theirs := vectors.provenance.get("model")) != vlm.fingerprint:
        raise InputError(
            f"the vectors are of model {theirs or '(not recorded)'}, but {vlm.name} is "
            f"{vlm.fingerprint}: take them on the model that is baked"
        )
    size = (len(vlm.layers), vlm.hidden_size)
    if tuple(edit.add.shape) != size:
        raise InputError(
            f"the edit is (layers, hidden) = {tuple(edit.add.shape)}, the model is {size}"
        )


def _folded(vlm: VLM, edit: Edit) -> tuple[Any, torch.dtype]:
    """The model with biases, sharing what weights it can, and the precision of its weights."""
    config = copy.deepcopy(vlm.model.config)
    kind, text = config.model_type, config.get_text_config()
    llama, written_as = _as_llama(text), type(vlm.model)
    if text is config:
        config, written_as = llama, LlamaForCausalLM
    else:
        config.text_config = llama
    # Weights that are tied in memory decide: nested configurations may disagree.
    embeddings, head = vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    config.tie_word_embeddings = llama.tie_word_embeddings = tied
    with torch.device("meta"):
        model = written_as(config)
    names = {module: name for name, module in vlm.model.named_modules()}
    edited = {
        f"{names[layer]}.mlp.down_proj.bias": add.detach().float().cpu()
        for layer, add in zip(vlm.layers, edit.added, strict=True)
    }
    held = vlm.model.state_dict()
    stored = _narrowest({name: value for name, value in held.items() if name not in edited})
    state = {name: value.to(stored) for name, value in held.items() if name not in edited}
    for name, add in edited.items():
        state[name] = held[name].float().cpu() + add if name in held else add
    for name, parameter in model.named_parameters():
        if name not in state and name.endswith(".bias"):
            state[name] = torch.zeros(parameter.shape, dtype=stored)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise InputError(f"{vlm.name}: not the weights of a plain {kind}: {reason}") from error
    model.tie_weights()
    model.generation_config = copy.deepcopy(vlm.model.generation_config)
    return model, stored


def _as_llama(text: Any) -> LlamaConfig:
    """The configuration of a Llama decoder that computes the same, with biases in its MLPs."""
    if text.model_type == "llama":
        text.mlp_bias = True
        return text
    taken = LlamaConfig().to_dict().keys() - {"architectures", "model_type", "transformers_version"}
    settings = {name: value for name, value in text.to_dict().items() if name in taken}
    # Qwen2 always has biases on queries, keys and values; Llama then has one on the output too.
    settings |= {"mlp_bias": True, "attention_bias": text.model_type == "qwen2"}
    return LlamaConfig(**settings)


def _narrowest(state: Mapping[str, Tensor]) -> torch.dtype:
    """The narrowest precision that holds every value exactly: that of the files it came from."""
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(value.to(dtype).to(value.dtype), value) for value in state.values()):
            return dtype
    return torch.float32


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that takes its name if all goes well, and is removed if not."""
    draft = path.with_name(f"{path.name}.part")
    try:
        draft.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(
            f"{draft} is there: another bake is at work, or was killed; in that case remove it"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield draft
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_processor(vlm: VLM, folder: Path) -> bool:
    """Check that the saved processor splits text as the model's own does.

    transformers picks a tokenizer's class by the model's type, which baking may have changed.

    Returns:
        Whether transformers alone reads it here: not if it is without the video half that its
        class asks for, or if its class needs torchvision.
    """
    reader: Any = AutoProcessor if vlm.sees_images else AutoTokenizer
    try:
        read, reads = reader.from_pretrained(folder), True
    except (ImportError, OSError):
        if not vlm.sees_images:
            raise
        read, reads = load_processor(folder, vlm.model.config), False
    tokenizer = getattr(read, "tokenizer", read)
    text = f"{PROBE} {vlm.prompt_text(PROBE, image=False)}"
    if tokenizer(text)["input_ids"] != vlm.tokenizer(text)["input_ids"]:
        raise InputError(
            f"{vlm.name}: its {type(vlm.tokenizer).__name__} would be read otherwise in a Llama "
            "checkpoint, so it cannot be baked"
        )
    return reads


def _card(
    vlm: VLM, edit: Edit, vectors: ShiftVectors | None, stored: torch.dtype, reads: bool
) -> str:
    """The model card of a checkpoint, in Markdown.

    Args:
        vlm: the model before the edit.
        edit: what was folded in.
        vectors: what the edit was made of, if known.
        stored: the precision of the weights in the folder.
        reads: whether transformers alone reads the processor in the folder.
    """
    name = Path(vlm.name).name if Path(vlm.name).exists() else vlm.name
    norms = ", ".join(f"{norm:.3g}" for norm in edit.added.norm(dim=-1))
    facts = [("model", f"{name}, fingerprint {vlm.fingerprint}"), *edit.settings.items()]
    if vectors is None:
        facts.append(("vectors", "not recorded"))
    else:
        digest = hashlib.sha256(vectors.values.contiguous().numpy().tobytes()).hexdigest()[:16]
        facts.append(("vectors, SHA-256", digest))
        facts += [(f"vectors, {key}", value) for key, value in sorted(vectors.provenance.items())]
    facts.append(("what is added, norm by layer", norms))
    return rendered(
        Path(__file__).with_name("card.md.j2"),
        vlm=vlm,
        reads=reads,
        decoder=vlm.model.config.get_text_config(),
        name=name,
        method=edit.settings.get("method", "an edit"),
        reach=edit.settings.get("layers", "all"),
        table=markdown_table(pd.DataFrame(facts, columns=["what", "value"])),
        stored=str(stored).removeprefix("torch."),
        loaded=str(vlm.model.dtype).removeprefix("torch."),
    )
