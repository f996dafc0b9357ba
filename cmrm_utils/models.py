"""Any image-text model of transformers, and its decoder layers.

A model family whose layers lie elsewhere is one more entry in :data:`LAYER_PATHS`.
"""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from cmrm_utils.errors import InputError

CHECKPOINTS = Path(__file__).parent / "organism" / "checkpoints"
"""Where the bundled organisms lie, one folder each."""

LAYER_PATHS = ("model.language_model.layers", "model.layers")
"""Where a model keeps its decoder layers; the first path that exists is taken."""


@dataclass(eq=False)
class VLM:
    """A vision-language model with what it takes to prompt it and to reach its layers.

    Attributes:
        name: what it was loaded as.
        model: the transformers model, in evaluation mode.
        processor: its processor, whose chat template makes the prompts.
        layers: the language model's decoder layers, in order.
    """

    name: str
    model: Any
    processor: Any
    layers: tuple[nn.Module, ...]
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = fingerprint(self.model)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.model.config.get_text_config().hidden_size

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the token embeddings."""
        return self.model.get_input_embeddings().weight.device

    @property
    def image_tokens(self) -> int:
        """How many tokens one image takes in a prompt, read off a real prompt."""
        grey = Image.new("RGB", (336, 336), (127, 127, 127))
        with_image = self.inputs(["x"], [grey])["input_ids"].shape[1]
        return with_image - self.inputs(["x"], [None])["input_ids"].shape[1]

    def prompt_text(self, query: str, *, image: bool) -> str:
        """The chat template around a query, ready for the model's answer."""
        content: list[dict[str, str]] = [{"type": "image"}] if image else []
        content.append({"type": "text", "text": query})
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def inputs(
        self, queries: Sequence[str], images: Sequence[Image.Image | None]
    ) -> dict[str, Tensor]:
        """Model inputs for a batch, left-padded; rows with and without image may mix.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(rows, tokens)``, and ``pixel_values`` where
            any row has an image, on the model's device.
        """
        texts = [
            self.prompt_text(query, image=image is not None)
            for query, image in zip(queries, images, strict=True)
        ]
        shown = [image for image in images if image is not None]
        made = self.processor(
            text=texts,
            images=shown or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        made = {name: value.to(self.device) for name, value in made.items()}
        if "pixel_values" in made:
            made["pixel_values"] = made["pixel_values"].to(self.model.dtype)
        return made

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that make left padding exact: the first real token of every row is 0."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def find_layers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The language model's decoder layers, by name: a guess may hit the vision tower.

    Raises:
        InputError: the model keeps them at none of :data:`LAYER_PATHS`.
    """
    for path in LAYER_PATHS:
        try:
            return tuple(reduce(getattr, path.split("."), model))  # type: ignore[arg-type]
        except AttributeError:
            continue
    raise InputError(
        f"{type(model).__name__}: no decoder layers at {' or '.join(LAYER_PATHS)}; "
        "add the family's path to LAYER_PATHS in models.py"
    )


def organisms() -> list[str]:
    """The names of the bundled organisms."""
    return sorted(folder.name for folder in CHECKPOINTS.glob("*") if folder.is_dir())


def load_vlm(
    name_or_path: str | Path = "organism",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **from_pretrained: Any,
) -> VLM:
    """Load a hub id, a local folder, or a bundled organism.

    Args:
        name_or_path: ``organism`` and its variants are bundled; else a folder or a hub id.
        device: where to put it; by default a GPU if there is one.
        dtype: of the weights; by default float32 on the CPU, bfloat16 on a GPU.
        from_pretrained: passed to transformers' ``from_pretrained`` of the model.

    Raises:
        InputError: nothing that loads is there.
    """
    name = str(name_or_path)
    source = CHECKPOINTS / name if name in organisms() else name_or_path
    known = f"bundled: {', '.join(organisms())}; else a local folder or a hub id, owner/name"
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise InputError(f"{name}: a folder, but no checkpoint (it has no config.json)")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"cannot load model {name!r}: there is none of that name ({known})")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    try:
        with quiet():
            AutoConfig.from_pretrained(source)  # what is not there at all fails here, and soon
            processor = AutoProcessor.from_pretrained(source)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                source, dtype=dtype, **from_pretrained
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot load model {name!r}: {reason} ({known})") from error
    if "device_map" not in from_pretrained:
        model.to(place)
    return wrap(model, processor, name=name)


def wrap(model: Any, processor: Any, *, name: str) -> VLM:
    """A model and processor already in memory, as a :class:`VLM` in evaluation mode."""
    model.eval().requires_grad_(False)
    return VLM(name, model, processor, find_layers(model))


@contextmanager
def quiet() -> Any:
    """Nothing on standard error, where bars and retries would end up in the notebooks."""
    shown = transformers_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()


def fingerprint(model: Any) -> str:
    """16 hex digits of the configuration and of a few values of every parameter."""
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "dtype"):
        config.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta":
            digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
