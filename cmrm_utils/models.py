"""Any image-text model of transformers, or a language model alone, and its decoder layers.

What a family needs beyond what transformers gives every model is one entry here: where its
decoder layers lie (:data:`LAYER_PATHS`), a processor of its own (:data:`PROCESSORS`).
"""

import hashlib
import json
import logging
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as SEEING,
)
from transformers.utils import logging as transformers_logging

from cmrm_utils.errors import InputError
from cmrm_utils.organism import organism_folders
from cmrm_utils.prompts import CHAT_TEMPLATE, VICUNA_SYSTEM

LAYER_PATHS = ("model.language_model.layers", "model.layers")
"""Where a model keeps its decoder layers; the first path that exists is taken."""


PROBE = "Why is it so?"
"""A query to look at a chat template with."""

Place = Literal["layer", "heads", "mlp"]

PLACES: dict[Place, str] = {"layer": "", "heads": "self_attn.o_proj", "mlp": "mlp"}
"""Where in a decoder layer states are read and edited, and the path to the module there.

``layer``: the layer's output; ``heads``: what goes into the attention's output projection, all
heads' outputs side by side; ``mlp``: the MLP's output, before it is added to the residual stream.
"""


class QwenImageProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video half, which alone needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


PROCESSORS: dict[str, Any] = {"qwen2_5_vl": QwenImageProcessor}
"""Processors by ``model_type``, where ``AutoProcessor`` will not do."""

FETCHING = ("cache_dir", "token", "local_files_only", "force_download", "proxies")
WHERE = ("revision", "code_revision", "subfolder", *FETCHING)
"""Settings of :func:`load_vlm` that say where files come from: config, processor and weights."""

CHUNK, BLOCK = 2**20, 1024
"""Weights that are summed at a time, and pairs of them in each sum of a fingerprint."""

PLACEMENT = ("device", "device_map", "max_memory", "offload_folder", "batch_size", *FETCHING)
"""Settings of :func:`load_vlm` that say where and how fast it runs, and change no result."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image after the vision tower and the projector.

    Attributes:
        features: ``(image tokens, hidden)``, what takes the place of the image's tokens.
        extras: what else a family places tokens by (Qwen-VL's grid).
    """

    features: Tensor
    extras: dict[str, Tensor]


@dataclass(eq=False)
class VLM:
    """A vision-language model with what it takes to prompt it and to reach its layers.

    Attributes:
        name: what it was loaded as.
        model: the transformers model, in evaluation mode.
        processor: its processor, whose chat template makes the prompts; of a language model
            alone, its tokenizer.
        layers: the language model's decoder layers, in order.
        system: a system prompt that comes before every query, or None for the template's own.
        pad_to_square: whether images are padded to a square before the processor has them.
        batch_size: rows a batch at most; fewer are taken where they do not fit into memory.

    Raises:
        InputError: its chat template is missing, leaves out the query or the image, or has no
            place for a system prompt; no token can pad; it sees no images and is to pad them.
    """

    name: str
    model: Any
    processor: Any
    layers: tuple[nn.Module, ...]
    system: str | None = None
    pad_to_square: bool = False
    batch_size: int = 128
    _fingerprints: dict[Any, str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, not {self.batch_size}")
        make_ready(self.processor, self.model.config, self.name)
        if self.pad_to_square and not self.sees_images:
            raise InputError(f"{self.name} sees no images, so pad_to_square has no meaning for it")
        if self.system is not None:
            try:
                kept = self.system in self.prompt_text("", image=False)
            except TemplateError:
                kept = False
            if not kept:
                raise InputError(f"{self.name}: its chat template takes no system prompt")

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the weights and of all that changes prompts, pictures and endings.

        Taken anew when any of it has changed since (:func:`weights_state`).
        """
        settings = self._settings()
        state = (
            json.dumps(settings, sort_keys=True, default=str),
            weights_state(self.model.parameters()),
        )
        if state not in self._fingerprints:
            self._fingerprints.clear()
            self._fingerprints[state] = fingerprint(self.model, settings)
        return self._fingerprints[state]

    def _settings(self) -> dict[str, Any]:
        """What beside the weights and the configuration decides a response."""
        tokenizer = self.tokenizer
        texts = [self.prompt_text(PROBE, image=x) for x in {False, self.sees_images}]
        marks = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
        return {
            "system": self.system,
            "prompts": [(text, self.tokenised(text)) for text in sorted(texts)],
            "chat_template": self.processor.chat_template,
            "special_tokens": [(x, x and tokenizer.convert_tokens_to_ids(x)) for x in marks],
            "ends": sorted(self.ends),
            "pictures": self.pictures,
        }

    @property
    def picture_state(self) -> tuple[Any, ...]:
        """Something that differs when pictures would be encoded otherwise than before."""
        decoder = {id(p) for layer in self.layers for p in layer.parameters()}
        others = [p for p in self.model.parameters() if id(p) not in decoder]
        return (json.dumps(self.pictures, default=str), *weights_state(others))

    @property
    def pictures(self) -> dict[str, Any]:
        """Settings of what is done to a picture before the vision tower; empty without one."""
        if not self.sees_images:
            return {}
        made = {"pad_to_square": self.pad_to_square, **_plain(self.processor.to_dict())}
        return made | {"image_processor": _plain(self.processor.image_processor.to_dict())}

    @property
    def ends(self) -> set[int]:
        """Token ids that end a response; empty where none does."""
        found: Any = self.model.generation_config.eos_token_id
        return set() if found is None else {found} if isinstance(found, int) else {*found}

    def tokenised(self, text: str) -> list[int]:
        """The ids of a whole prompt, an image being one token; it gets its start token once."""
        start = self.tokenizer.bos_token
        special = not (start and text.startswith(start))
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    @property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        return self.model.config.get_text_config().vocab_size

    @property
    def sees_images(self) -> bool:
        """Whether it takes images; a language model alone takes text only."""
        return hasattr(self.processor, "image_processor")

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.model.config.get_text_config().hidden_size

    @property
    def head_size(self) -> int:
        """Width of one attention head's output."""
        text = self.model.config.get_text_config()
        return getattr(text, "head_dim", None) or self.hidden_size // text.num_attention_heads

    def width(self, place: Place) -> int:
        """Width of the states at a place."""
        heads = self.model.config.get_text_config().num_attention_heads
        return heads * self.head_size if place == "heads" else self.hidden_size

    def modules(self, place: Place) -> tuple[nn.Module, ...]:
        """The module of each decoder layer whose input or output is a place (:data:`PLACES`).

        Raises:
            InputError: a layer that has none there.
        """
        found = []
        for i, layer in enumerate(self.layers):
            try:
                found.append(layer.get_submodule(PLACES[place]))
            except AttributeError as error:
                raise InputError(
                    f"{self.name}: decoder layer {i} has no {PLACES[place]}, so its {place} can "
                    "neither be read nor edited; see PLACES in models.py"
                ) from error
        return tuple(found)

    @property
    def device(self) -> torch.device:
        """Where inputs go: where the token embeddings are, or run if they are offloaded."""
        embeddings = self.model.get_input_embeddings()
        if embeddings.weight.device.type == "meta":
            return torch.device(embeddings._hf_hook.execution_device)
        return embeddings.weight.device

    @property
    def image_tokens(self) -> int:
        """How many tokens one image takes in a prompt, read off a real prompt."""
        grey = Image.new("RGB", (336, 336), (127, 127, 127))
        with_image = self.inputs(["x"], [grey])["input_ids"].shape[1]
        return with_image - self.inputs(["x"], [None])["input_ids"].shape[1]

    def check_sees_images(self) -> None:
        """Raise :class:`InputError` for a language model alone."""
        if not self.sees_images:
            raise InputError(
                f"{self.name} is a language model and sees no images: "
                "only the image conditions none and caption work"
            )

    def prompt_text(self, query: str, *, image: bool) -> str:
        """The chat template around a query, ready for the model's answer.

        A template of Vicuna's form has the system prompt right before ``USER:``, as Vicuna was
        trained; any other has it as its system message.
        """
        text = self._rendered(("user", query), image=image)
        if self.system is None:
            return text
        if text.startswith("USER: "):
            return f"{self.system} {text}"
        return self._rendered(("system", self.system), ("user", query), image=image)

    def _rendered(self, *turns: tuple[str, str], image: bool) -> str:
        return rendered(self.processor, *turns, image=image)

    def inputs(
        self, queries: Sequence[str], images: Sequence[Image.Image | None]
    ) -> dict[str, Tensor]:
        """Model inputs for a batch, left-padded; rows with and without image may mix.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(rows, tokens)``, and where any row has an image
            ``pixel_values`` and what else the family wants of it, on the model's device.

        Raises:
            InputError: an image for a model that sees none.
        """
        texts = [
            self.prompt_text(query, image=image is not None)
            for query, image in zip(queries, images, strict=True)
        ]
        shown = [image for image in images if image is not None]
        if shown:
            self.check_sees_images()
        if self.pad_to_square:
            shown = [squared(i, self.processor.image_processor.image_mean) for i in shown]
        start = self.tokenizer.bos_token
        made = self.processor(
            text=texts,
            **({"images": shown} if shown else {}),
            padding=True,
            padding_side="left",
            add_special_tokens=not (start and texts[0].startswith(start)),
            return_tensors="pt",
        )
        made = {name: value.to(self.device) for name, value in made.items()}
        if "pixel_values" in made:
            made["pixel_values"] = made["pixel_values"].to(self.model.dtype)
        return made

    def encode(self, image: Image.Image) -> EncodedImage:
        """An image after the vision tower and the projector, on the model's device.

        Raises:
            InputError: the model sees no images.
        """
        self.check_sees_images()
        reader = self.processor.image_processor
        if self.pad_to_square:
            image = squared(image, reader.image_mean)
        made = reader(images=[image], return_tensors="pt").to(self.device)
        pixels = made.pop("pixel_values").to(self.model.dtype)
        with torch.inference_mode():
            found = self.model.model.get_image_features(pixels, **made, return_dict=True)
        return EncodedImage(torch.cat(list(found.pooler_output)), dict(made))

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Position ids that make left padding exact: the first real token of every row is 0.

        Returns:
            ``(rows, tokens)``; ``(3, rows, tokens)`` for a family that places image tokens by
            time, height and width (Qwen-VL).
        """
        if hasattr(self.model.model, "get_rope_index"):
            return self.model.model.get_rope_index(**inputs)[0]
        return position_ids(inputs["attention_mask"])

    def extended(
        self, inputs: Mapping[str, Tensor], ids: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """Inputs with text tokens after the prompt, ``ids`` and ``mask`` ``(rows, more)``."""
        made = dict(inputs)
        made["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        made["attention_mask"] = torch.cat([inputs["attention_mask"], mask], dim=1)
        if "mm_token_type_ids" in made:  # 0 is text
            made["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, ids.shape[1]))
        return made

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def rendered(processor: Any, *turns: tuple[str, str], image: bool) -> str:
    """Turns, each a role and a text, in the chat template of a processor or a tokenizer."""
    messages: list[dict[str, Any]] = []
    for role, text in turns:
        parts = [{"type": "image"}] if image and role == "user" else []
        parts.append({"type": "text", "text": text})
        sees = hasattr(processor, "image_processor")
        messages.append({"role": role, "content": parts if sees else text})
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def make_ready(processor: Any, config: Any, name: str) -> None:
    """See that a processor, or a tokenizer, can make prompts and batches of them.

    Where the tokenizer has no token to pad with, or one that the model does not know, another
    special token serves: what is padded is masked. A language model without a chat template is
    prompted in the form that LLaVA-1.5 was trained in.

    Raises:
        InputError: no chat template, or one that fails on a query, leaves it or the image out;
            no special token.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    size = config.get_text_config().vocab_size
    marks = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.eos_token, tokenizer.bos_token)
    for mark in marks:
        number = None if mark is None else tokenizer.convert_tokens_to_ids(mark)
        if number is not None and number < size:
            tokenizer.pad_token = mark
            break
    else:
        raise InputError(
            f"{name}: its tokenizer has no token to pad with (no pad, unknown, end or start "
            "token): name one as pad_token in its tokenizer_config.json"
        )
    sees = hasattr(processor, "image_processor")
    template = processor.chat_template or tokenizer.chat_template
    processor.chat_template = template or (None if sees else CHAT_TEMPLATE)
    if not processor.chat_template:
        raise InputError(
            f"{name}: it has no chat template (is it a base model?): put one that suits it beside "
            "its files, as chat_template.jinja"
        )
    try:
        text = rendered(processor, ("user", PROBE), image=False)
        shown = rendered(processor, ("user", PROBE), image=True) if sees else text
    except (TemplateError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name}: its chat template fails on a single query ({reason}): mend it in "
            "chat_template.jinja"
        ) from error
    lost = next((each for each in (text, shown) if PROBE not in each or "'type'" in each), None)
    if lost is not None:
        raise InputError(
            f"{name}: its chat template does not put a query as it is into the prompt, which "
            f"becomes {lost[:80]!r}: mend it in chat_template.jinja"
        )
    if sees and shown == text:
        raise InputError(
            f"{name}: its chat template has no place for an image (the prompt is {text[:80]!r} "
            "with and without one): mend it in chat_template.jinja"
        )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the names of classes, which differ between equal ones."""
    names = ("processor_class", "auto_map", "image_processor", "video_processor")
    return {
        key: value
        for key, value in settings.items()
        if value is not None and not key.endswith("_type") and key not in names
    }


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that make left padding exact: the first real token of every row is 0."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def squared(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """An image in the middle of a square of the mean colour, as LLaVA pads (``mean`` is 0 to 1)."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


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
    """The names of the organisms: the bundled one, and those trained here."""
    return sorted(organism_folders())


def load_vlm(
    name_or_path: str | Path = "organism",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    bits: int | None = None,
    system: str | None = None,
    pad_to_square: bool = False,
    batch_size: int = 128,
    use_safetensors: bool = True,
    trust_remote_code: bool = False,
    **from_pretrained: Any,
) -> VLM:
    """Load a hub id, a local folder, or an organism.

    A language model alone (Vicuna) is loaded too; where its tokenizer has no chat template, it is
    prompted in the form that LLaVA-1.5 was trained in, ``USER: ... ASSISTANT:``.

    Args:
        name_or_path: ``organism`` is bundled, its variants are known by name once they were trained
            (``cmrm train-organism``); else a folder or a hub id.
        device: where to put it; by default a GPU if there is one. Or give ``device_map``.
        dtype: of the weights, perhaps by name; by default float32 on the CPU, bfloat16 on a GPU.
            ``auto`` is bfloat16 where the processor or GPU computes in it, else float32: on a CPU
            numbers then depend on which processor it is.
        bits: 4 or 8: weights quantised by bitsandbytes (the extra ``quantized``).
        system: a system prompt; ``vicuna`` is that of Vicuna, which LLaVA's own evaluations use.
        pad_to_square: pad images with their mean colour, as LLaVA does, where the processor would
            crop them.
        batch_size: rows a batch, unless a call says otherwise.
        use_safetensors: False reads pickled weights (``.bin``) too, as torch's ``weights_only``,
            which runs nothing that is in them.
        trust_remote_code: True runs the code that comes with a model: only what you have read.
        from_pretrained: passed to transformers' ``from_pretrained`` of the model, for example
            ``device_map="auto"``. What says where files come from (:data:`WHERE`, for example
            ``revision``) is passed to that of config, processor and tokenizer as well.

    Raises:
        InputError: nothing that loads is there, or a setting that makes no sense.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = _dtype(dtype, place)
    if bits is not None:
        from_pretrained["quantization_config"] = _quantised(bits, precision)
        from_pretrained.setdefault("device_map", {"": place})
    name = str(name_or_path)
    where = {key: value for key, value in from_pretrained.items() if key in WHERE}
    source, config, processor = find_model(
        name_or_path, trust_remote_code=trust_remote_code, **where
    )
    auto: Any = AutoModelForImageTextToText if config.model_type in SEEING else AutoModelForCausalLM
    with _loading(name):
        model, found = auto.from_pretrained(
            source,
            dtype=precision,
            output_loading_info=True,
            use_safetensors=use_safetensors,
            trust_remote_code=trust_remote_code,
            **from_pretrained,
        )
    if missing := sorted(found["missing_keys"]):  # transformers would leave them random
        raise InputError(
            f"cannot load model {name!r}: its files lack {len(missing)} weights ({missing[0]} "
            "first); is it an original LLaVA checkpoint, for `cmrm convert`?"
        )
    if "device_map" not in from_pretrained:
        model.to(place)
    # Checkpoints bring sampling settings and penalties of their own: greedy is plain greedy here.
    own, tokenizer = model.generation_config, getattr(processor, "tokenizer", processor)
    ends = (own.eos_token_id, config.get_text_config().eos_token_id, tokenizer.eos_token_id)
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=next((end for end in ends if end is not None), None),
        pad_token_id=tokenizer.pad_token_id,
    )
    return wrap(
        model,
        processor,
        name=name,
        system=VICUNA_SYSTEM if system == "vicuna" else system,
        pad_to_square=pad_to_square,
        batch_size=batch_size,
    )


def find_model(
    name_or_path: str | Path, *, trust_remote_code: bool = False, **where: Any
) -> tuple[str | Path, Any, Any]:
    """Where a model is, its configuration and its processor: all but the weights, and soon.

    Args:
        name_or_path: as :func:`load_vlm` takes it.
        trust_remote_code: as :func:`load_vlm` takes it.
        where: of :data:`WHERE`, as :func:`load_vlm` takes them.

    Raises:
        InputError: it is not there, is no model that can be loaded, or makes no prompts.
    """
    name = str(name_or_path)
    source = organism_folders().get(name, name_or_path)
    if Path(source).is_dir():
        if not (Path(source) / (where.get("subfolder") or "") / "config.json").is_file():
            raise InputError(f"{name}: a folder, but no checkpoint (it has no config.json)")
        if where.get("revision") not in (None, "main"):
            raise InputError(
                f"{name}: a folder has no revision {where['revision']!r}: leave it out, or give a "
                "hub id"
            )
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"cannot load model {name!r}: {_how_to_have(name)}")
    with _loading(name):
        # Said plainly, for transformers would ask whoever sits there.
        asked: Any = {"trust_remote_code": trust_remote_code, **where}
        if not trust_remote_code:  # without the code its revision would be taken for a setting
            asked.pop("code_revision", None)
        config = AutoConfig.from_pretrained(source, **asked)
        if config.model_type in SEEING:
            reader = PROCESSORS.get(config.model_type, AutoProcessor)
            # torchvision, where it is installed, resizes otherwise than what the models learnt on.
            processor = reader.from_pretrained(source, backend="pil", **asked)
        else:
            processor = AutoTokenizer.from_pretrained(source, **asked)
    make_ready(processor, config, name)
    return source, config, processor


def wrap(model: Any, processor: Any, *, name: str, **settings: Any) -> VLM:
    """A model and processor already in memory, as a :class:`VLM` in evaluation mode.

    ``settings`` are those of :class:`VLM`: ``system``, ``pad_to_square``, ``batch_size``.
    """
    model.eval().requires_grad_(False)
    return VLM(name, model, processor, find_layers(model), **settings)


def _dtype(dtype: torch.dtype | str | None, place: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if place.type == "cpu" else torch.bfloat16
    if dtype == "auto":
        return torch.bfloat16 if has_bfloat16(place) else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype {dtype!r} is none: bfloat16, float16, float32 or auto")
    return found


def has_bfloat16(place: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself, rather than by way of float32."""
    if place.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if place.type != "cpu":
        return False
    if platform.machine() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def _quantised(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    if bits not in (4, 8):
        raise InputError(f"bits must be 4 or 8, not {bits!r}")
    if find_spec("bitsandbytes") is None:
        raise InputError("bits needs bitsandbytes: pip install 'cmrm-workbook[quantized]'")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=dtype
    )


def _how_to_have(name: str) -> str:
    """Of a name that is neither a folder's nor a hub id: how it is made, or which there are."""
    # By name, for the recipes stand above what loads models, and this is said of them alone.
    recipes = import_module("cmrm_utils.organism.recipe")
    if command := recipes.training_command(name):
        return f"it must first be trained, by `{command}`"
    return f"there is none of that name ({_known()})"


def _known() -> str:
    here = ", ".join(organisms())
    return (
        f"organisms: {here}, more by `cmrm train-organism`; else a local folder or a hub id, "
        "owner/name"
    )


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Quiet, and what goes wrong is told in one line."""
    try:
        with quiet():
            yield
    except UnpicklingError as error:
        raise InputError(
            f"cannot load model {name!r}: its .bin files hold more than tensors, and are not read"
        ) from error
    except (ImportError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "safetensors" in reason:
            reason += "; pickled weights (.bin) are read with use_safetensors=False alone"
        raise InputError(f"cannot load model {name!r}: {reason} ({_known()})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing on standard error, where bars and retries would end up in the notebooks."""
    shown = transformers_logging.is_progress_bar_enabled()
    loud = [logging.getLogger(name) for name in ("huggingface_hub", "accelerate")]
    levels = [logger.level for logger in loud]
    transformers_logging.disable_progress_bar()
    for logger in loud:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()


def fingerprint(model: Any, settings: Mapping[str, Any] | None = None) -> str:
    """16 hex digits of the configuration, of the weights (:func:`_checksums`), and of settings."""
    config = {**model.config.to_dict(), **(settings or {})}
    for volatile in ("_name_or_path", "transformers_version", "dtype"):
        config.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        for values in _checksums(model, name, parameter):
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def _checksums(model: nn.Module, name: str, parameter: Tensor) -> Iterator[Tensor]:
    """Weighted sums of a parameter's float32 bit patterns, on the CPU; fetched if offloaded.

    Sums of integers, which wrap round, come out the same on every device.
    """
    if parameter.device.type != "meta":
        values = parameter.detach().flatten()
        places = torch.arange(1, 2 * BLOCK, 2, device=values.device)
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK].float()
            pairs = F.pad(chunk, (0, -len(chunk) % (2 * BLOCK))).view(torch.int64)
            yield (pairs.view(-1, BLOCK) * places).sum(-1).cpu()
        return
    owner = model.get_submodule(name.rpartition(".")[0])
    if not hasattr(owner, "_hf_hook"):
        return  # a model without weights, made on "meta" to look at its shape
    from accelerate.utils import align_module_device

    with align_module_device(owner, "cpu"):
        yield from _checksums(model, name, model.get_parameter(name))


def weights_state(parameters: Iterable[Tensor]) -> tuple[Any, ...]:
    """Something cheap that differs when weights have been changed.

    It sees every change in place that torch counts, weights put in the place of others, and, of
    changes behind torch's back (``weight.data.mul_(2)``), those that reach one of a few values of
    a tensor. Of offloaded weights it sees nothing.
    """
    counted = []
    looked: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.device.type != "meta":
            values = parameter.detach().flatten()
            some = looked.setdefault((values.device, values.dtype), [])
            some.append(values[:: len(values) // 8 + 1])
            version = 0 if parameter.is_inference() else parameter._version
            counted.append((parameter.data_ptr(), version))
    return (*counted, *(torch.cat(x).double().cpu().numpy().tobytes() for x in looked.values()))
