"""Loading models: from the hub, a folder, or the bundled organism."""

import logging
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
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
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as SEEING,
)
from transformers.utils import logging as transformers_logging

from cmrm_utils.errors import InputError, did_you_mean
from cmrm_utils.models import VLM
from cmrm_utils.paths import bundled_folders, organism_folders
from cmrm_utils.processors import load_processor, make_ready
from cmrm_utils.prompts import VICUNA_SYSTEM

LAYER_PATHS = (
    "model.language_model.layers",
    "model.text_model.layers",
    "model.layers",
    "language_model.model.layers",
)
"""Paths of a model's decoder layers, by family; the first that exists is taken."""


FETCHING = ("cache_dir", "token", "local_files_only", "force_download", "proxies")


WHERE = ("revision", "code_revision", "subfolder", *FETCHING)
"""Settings that say where the files of configuration, processor and weights come from."""


PLACEMENT = ("device", "device_map", "max_memory", "offload_folder", "batch_size", *FETCHING)
"""Settings of :func:`load_vlm` that change where and how fast a model runs, but no result."""


def find_layers(model: Any, path: str | None = None) -> tuple[nn.Module, ...]:
    """The language model's decoder layers, found by name: a search might find the vision tower's.

    Args:
        model: the transformers model.
        path: where they are, as in ``model.decoder.layers``; by default the first of
            :data:`LAYER_PATHS` that exists.

    Raises:
        InputError: the model has no module list there, or one of another length than its
            configuration says; the message names the module lists that it has.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    paths = LAYER_PATHS if path is None else (path,)
    key = next((name for name in paths if name in lists), None)
    kind, seen = type(model).__name__, ", ".join(lists) or "none"
    if key is None:
        listed = " (see LAYER_PATHS)" if path is None else ""
        raise InputError(
            f"{kind}: no decoder layers at {' or '.join(paths)}{listed}; give their path as "
            f"layers=...; its module lists are {seen}"
        )
    count = model.config.get_text_config().num_hidden_layers
    if count != len(lists[key]):
        raise InputError(
            f"{kind}: {len(lists[key])} layers at {key}, but its decoder has {count}; "
            f"its module lists are {seen}"
        )
    return tuple(lists[key])


def organisms() -> list[str]:
    """The names of all organisms: the bundled one, and those trained on this machine."""
    return sorted(organism_folders())


def load_vlm(
    name_or_path: str | Path = "organism",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    bits: int | None = None,
    layers: str | None = None,
    system: str | None = None,
    pad_to_square: bool = False,
    batch_size: int = 128,
    use_safetensors: bool = True,
    trust_remote_code: bool = False,
    check: bool = True,
    **from_pretrained: Any,
) -> VLM:
    """Load a hub id, a local folder, or an organism; a model without vision (Vicuna) loads too.

    Example:
        >>> vlm = load_vlm("organism")
        >>> len(vlm.layers), vlm.hidden_size
        (6, 160)

    Args:
        name_or_path: ``organism`` is bundled; its variants and ``smollm2-llava`` have a name once
            ``cmrm train-organism`` has trained them; otherwise a folder or a hub id.
        device: a GPU by default, if there is one. Or give ``device_map``.
        dtype: of the weights; by default float32 on a CPU and bfloat16 on a GPU. ``auto`` is
            bfloat16 where the hardware computes in it, so results then depend on the machine.
        bits: 4 or 8, to quantise the weights with bitsandbytes (the extra ``quantized``).
        layers: path of the decoder layers, for a family that is not in :data:`LAYER_PATHS`.
        system: a system prompt; ``vicuna`` is Vicuna's, which LLaVA's own evaluations use.
        pad_to_square: pad images with their mean colour, as LLaVA does, instead of cropping.
        batch_size: rows in a batch of generation.
        use_safetensors: False also reads pickled weights (``.bin``), as torch's ``weights_only``.
        trust_remote_code: True runs code that comes with the model: only what you have read.
        check: compare a few passes with transformers alone, once a model and version of packages;
            what differs runs in a slower way that is right. Without it, results are marked.
        from_pretrained: for transformers' ``from_pretrained``, as ``device_map="auto"``. Those of
            :data:`WHERE` (``revision``) also go to the configuration and the processor.

    Raises:
        InputError: nothing there can be loaded, a setting is wrong, or the check shows that the
            model's numbers cannot be right.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    from_pretrained |= {"dtype": _dtype(dtype, place), "use_safetensors": use_safetensors}
    if bits is not None:
        from_pretrained["quantization_config"] = _quantised(bits, from_pretrained["dtype"])
        from_pretrained.setdefault("device_map", {"": place})
    name, trust = str(name_or_path), {"trust_remote_code": trust_remote_code}
    where = {key: value for key, value in from_pretrained.items() if key in WHERE}
    source, config, processor = find_model(name_or_path, **trust, **where)
    model = _read(name, source, config, place, **trust, **from_pretrained)
    model.generation_config = _greedy(model, processor)
    seen = {"pad_to_square": pad_to_square, "batch_size": batch_size}
    vlm = wrap(model, processor, name=name, layers=layers, system=system, **seen)
    vlm.checked = False
    if check:  # imported by name, since it lies on a floor above this file
        import_module("cmrm_utils.checks.model").check_model(vlm)
    return vlm


def _read(
    name: str, source: str | Path, config: Any, place: torch.device, **from_pretrained: Any
) -> Any:
    """The transformers model, on the device unless a ``device_map`` says otherwise."""
    auto: Any = AutoModelForImageTextToText if config.model_type in SEEING else AutoModelForCausalLM
    with _loading(name):
        model, info = auto.from_pretrained(source, output_loading_info=True, **from_pretrained)
    if missing := sorted(info["missing_keys"]):  # transformers would leave them random
        raise InputError(
            f"cannot load model {name!r}: its files lack {len(missing)} weights ({missing[0]} "
            "first); is it an original LLaVA checkpoint, for `cmrm convert`?"
        )
    return model if "device_map" in from_pretrained else model.to(place)


def _greedy(model: Any, processor: Any) -> GenerationConfig:
    """Plain greedy decoding: checkpoints bring sampling settings and penalties of their own."""
    own, tokenizer = model.generation_config, getattr(processor, "tokenizer", processor)
    text = model.config.get_text_config()
    ends = (own.eos_token_id, text.eos_token_id, tokenizer.eos_token_id)
    return GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=next((end for end in ends if end is not None), None),
        pad_token_id=tokenizer.pad_token_id,
    )


def find_model(
    name_or_path: str | Path, *, trust_remote_code: bool = False, **where: Any
) -> tuple[str | Path, Any, Any]:
    """A model's source, configuration and processor: everything but the weights, in seconds.

    Args:
        name_or_path: as :func:`load_vlm` takes it.
        trust_remote_code: as :func:`load_vlm` takes it.
        where: settings of :data:`WHERE`.

    Raises:
        InputError: the model does not exist, cannot be loaded, or has no usable chat template.
    """
    name = str(name_or_path)
    source = organism_folders().get(name, name_or_path)
    if name in bundled_folders():
        # Imported by name, since it lies on a floor above this file.
        source = import_module("cmrm_utils.bundled.merge").folder(name)
    if Path(source).is_dir():
        if not (Path(source) / (where.get("subfolder") or "") / "config.json").is_file():
            raise InputError(f"{name}: a folder, but no checkpoint (it has no config.json)")
        if where.get("revision") not in (None, "main"):
            raise InputError(
                f"{name}: a folder has no revision {where['revision']!r}: leave the revision out, "
                "or give a hub id"
            )
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"cannot load model {name!r}: {_how_to_have(name)}")
    with _loading(name):
        # Always passed: left out, transformers would ask at the terminal.
        options: Any = {"trust_remote_code": trust_remote_code, **where}
        if not trust_remote_code:  # transformers would take it for a setting of the model
            options.pop("code_revision", None)
        config = AutoConfig.from_pretrained(source, **options)
        if config.model_type in SEEING:
            processor = load_processor(source, config, **options)
        else:
            processor = AutoTokenizer.from_pretrained(source, **options)
    make_ready(processor, config, name)
    return source, config, processor


def wrap(
    model: Any,
    processor: Any,
    *,
    name: str,
    layers: str | None = None,
    system: str | None = None,
    **settings: Any,
) -> VLM:
    """A :class:`VLM`, in evaluation mode, of a model and a processor that are in memory.

    ``layers`` and ``system`` are as in :func:`load_vlm`; ``settings`` are ``pad_to_square`` and
    ``batch_size``.
    """
    model.eval().requires_grad_(False)
    system = VICUNA_SYSTEM if system == "vicuna" else system
    return VLM(name, model, processor, find_layers(model, layers), system=system, **settings)


def _dtype(dtype: torch.dtype | str | None, place: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if place.type == "cpu" else torch.bfloat16
    if dtype == "auto":
        return torch.bfloat16 if has_bfloat16(place) else torch.float32
    precision = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(precision, torch.dtype) or not precision.is_floating_point:
        raise InputError(f"dtype must be bfloat16, float16, float32 or auto, not {dtype!r}")
    return precision


def has_bfloat16(place: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively, without a detour over float32."""
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
    """What to do about a name that is neither an organism's, nor a folder, nor a hub id."""
    # Imported by name, since the recipes lie on a floor above this file.
    for folder in ("organism", "bundled"):
        recipes = import_module(f"cmrm_utils.{folder}.recipe")
        if command := recipes.training_command(name):
            return f"it must first be trained, by `{command}`"
    meant = did_you_mean(name, [*bundled_folders(), *organisms()])
    return f"there is none of that name; {meant}{_known()}"


def _known() -> str:
    here = ", ".join([*sorted(bundled_folders()), *organisms()])
    return (
        f"bundled: {here}, more by `cmrm train-organism`; otherwise a local folder or a hub id, "
        "owner/name"
    )


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Load quietly, and turn any failure into a one-line :class:`InputError`."""
    try:
        with quiet():
            yield
    except UnpicklingError as error:
        raise InputError(
            f"cannot load model {name!r}: its .bin files hold more than tensors, and are not read"
        ) from error
    except (ImportError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "torchvision" in str(error).lower():
            reason = "its images are read by torchvision: pip install 'cmrm-workbook[vision]'"
        if "safetensors" in reason:
            reason += "; pickled weights (.bin) are read with use_safetensors=False alone"
        if "gated repo" in str(error):
            page = f"https://huggingface.co/{name}"
            reason += f" Accept its licence on {page} and log in with `hf auth login`"
        raise InputError(f"cannot load model {name!r}: {reason} ({_known()})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Print no progress bars or retries: standard error would show them in the notebooks."""
    bars = transformers_logging.is_progress_bar_enabled()
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
        if bars:
            transformers_logging.enable_progress_bar()
