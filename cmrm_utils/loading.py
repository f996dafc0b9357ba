"""Loading models: from the hub, a folder, or the bundled organism."""

import logging
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
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
from cmrm_utils.models import VLM, make_ready
from cmrm_utils.paths import organism_folders
from cmrm_utils.prompts import VICUNA_SYSTEM

LAYER_PATHS = ("model.language_model.layers", "model.layers")
"""Where a model keeps its decoder layers; the first path that exists is taken."""


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


PLACEMENT = ("device", "device_map", "max_memory", "offload_folder", "batch_size", *FETCHING)
"""Settings of :func:`load_vlm` that say where and how fast it runs, and change no result."""


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
