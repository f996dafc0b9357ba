"""Processors, loaded without the parts that no image needs, and what comes of their images."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import transformers
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoProcessor, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from cmrm_utils.errors import InputError
from cmrm_utils.prompts import CHAT_TEMPLATE

PROBE = "Why is it so?"
"""A query to test chat templates with."""


def rendered(processor: Any, *turns: tuple[str, str], image: bool) -> str:
    """Turns of role and text in the chat template of a processor or a tokenizer."""
    messages: list[dict[str, Any]] = []
    for role, text in turns:
        parts = [{"type": "image"}] if image and role == "user" else []
        parts.append({"type": "text", "text": text})
        sees = hasattr(processor, "image_processor")
        messages.append({"role": role, "content": parts if sees else text})
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def make_ready(processor: Any, config: Any, name: str) -> None:
    """Check that a processor, or a tokenizer, can make prompts and batches; complete it if needed.

    If the tokenizer has no padding token that the model knows, another special token takes its
    place: padding is masked. A language model without a chat template gets LLaVA-1.5's.

    Raises:
        InputError: there is no chat template, or it fails on a query, or drops the query or the
            image; there is no special token.
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
            f"{name}: its chat template fails on a single query ({reason}): fix it in "
            "chat_template.jinja"
        ) from error
    lost = next((each for each in (text, shown) if PROBE not in each or "'type'" in each), None)
    if lost is not None:
        raise InputError(
            f"{name}: its chat template does not put a query as it is into the prompt, which "
            f"becomes {lost[:80]!r}: fix it in chat_template.jinja"
        )
    if sees and shown == text:
        raise InputError(
            f"{name}: its chat template has no place for an image (the prompt is {text[:80]!r} "
            "with and without one): fix it in chat_template.jinja"
        )


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without class names, which differ between equal processors."""
    names = ("processor_class", "auto_map", "image_processor", "video_processor")
    return {
        key: value
        for key, value in settings.items()
        if value is not None and not key.endswith("_type") and key not in names
    }


def squared(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """An image centred on a square of the mean colour, LLaVA's padding (``mean``: 0 to 1)."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def load_processor(source: Any, config: Any, **options: Any) -> Any:
    """A family's own processor, with the PIL version of its image processor.

    With torchvision installed, the default version resizes differently from training. The video
    half, which alone would need torchvision, is left out.

    Args:
        source: a folder or hub id.
        config: the model's configuration.
        options: for ``from_pretrained``.
    """
    kind = _class_of(source, config, **options)
    videos = kind is not None and any("video" in each for each in kind.get_attributes())
    kind = without_video(kind) if videos else kind or AutoProcessor
    return kind.from_pretrained(source, backend="pil", **options)


def _class_of(source: Any, config: Any, **options: Any) -> Any:
    """The processor's class as its files name it, else by configuration; None for remote code."""
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    readers = ProcessorMixin.get_processor_dict, ImageProcessingMixin.get_image_processor_dict
    for reader in readers:
        try:
            settings, _ = reader(source, **options)
        except OSError:
            continue
        if "AutoProcessor" in settings.get("auto_map", {}):
            return None
        if name := settings.get("processor_class"):
            kind = getattr(transformers, name, kind)
            break
    return _without_torchvision(kind) if getattr(kind, "is_dummy", False) else kind


def _without_torchvision(kind: Any) -> Any:
    """A class for which transformers has a placeholder, because its file imports torchvision.

    The file is read with the PIL version of its image processor in the other version's place.
    """
    package, _, file = kind.__module__.rpartition(".")
    family = file.removeprefix("processing_")
    other = f"{package}.image_processing_{family}"
    try:
        sys.modules[other] = import_module(f"{package}.image_processing_pil_{family}")
        return getattr(import_module(kind.__module__), kind.__name__)
    except ImportError:
        return kind  # whose own error names what it needs
    finally:
        sys.modules.pop(other, None)


class _NoVideo:
    """Stands for a package or a processor that is needed for videos alone."""

    def __getattr__(self, name: str) -> None:
        return None


VIDEO_ONLY = ("num2words",)
"""Packages that a processor's file asks for at once, but needs for videos alone."""


def without_video(kind: Any) -> Any:
    """A processor class that has, and asks for, no video processor."""
    parts = [each for each in kind.get_attributes() if "video" not in each]
    module = sys.modules[kind.__module__]
    for package in VIDEO_ONLY:
        if getattr(module, package, True) is None:
            setattr(module, package, _NoVideo())

    def from_args_and_dict(cls: Any, args: Any, settings: dict[str, Any], **more: Any) -> Any:
        settings = settings | {"video_processor": None}
        return super(made, cls).from_args_and_dict(args, settings, **more)

    members = {
        "video_processor": _NoVideo(),
        "get_attributes": classmethod(lambda cls: parts),
        "from_args_and_dict": classmethod(from_args_and_dict),
    }
    made: Any = type(kind.__name__, (kind,), members)
    return made


def stacked_rows(rows: Sequence[Mapping[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Inputs of single prompts as one batch: tokens padded on the left, images' tensors by zeros.

    Args:
        rows: each prompt's inputs.
        pad: id of the padding token.
    """
    width = max(row["input_ids"].shape[1] for row in rows)
    batch: dict[str, list[Tensor]] = {}
    for row in rows:
        for name, value in row.items():
            if value.shape == row["input_ids"].shape:
                filler = pad if name == "input_ids" else 0
                value = F.pad(value, (width - value.shape[1], 0), value=filler)
            batch.setdefault(name, []).append(value)
    return {name: _padded(values) for name, values in batch.items()}


def _padded(values: Sequence[Tensor]) -> Tensor:
    """Tensors on top of each other, of which all but the first axis may be padded with zeros."""
    most = [max(sizes) for sizes in zip(*(each.shape[1:] for each in values), strict=True)]
    together = []
    for each in values:
        gaps = [(0, want - has) for want, has in zip(most, each.shape[1:], strict=True)]
        together.append(F.pad(each, [side for gap in reversed(gaps) for side in gap]))
    return torch.cat(together)


UNREADABLE = (ArithmeticError, LookupError, TypeError, ValueError)
"""What processors raise for an image that they cannot read, such as one of a single row."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by whatever name torch tells it."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image after the vision tower and the projector.

    Attributes:
        features: ``(image tokens, hidden)``, which replace the embeddings of the image's tokens.
        extras: what else a family needs for positions (Qwen-VL's grid).
        written: the ids that the processor writes in the place of the placeholder in a prompt; None
            if it changes more of the prompt than that.
        deep: for some families, ``(image tokens, hidden)`` for each of the first layers too.
        form: the class of the encoder's output, and whether it lists its features by image.
    """

    features: Tensor
    extras: dict[str, Tensor]
    written: tuple[int, ...] | None
    deep: tuple[Tensor, ...] = ()
    form: tuple[Any, bool] = (BaseModelOutputWithPooling, True)

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return self.features.nbytes + sum(each.nbytes for each in self.deep)


def flat(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Features ``(image tokens, hidden)`` of a tensor, or of a list by image or tile."""
    if isinstance(features, Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([flat(each) for each in features])


def joined(images: Sequence[EncodedImage]) -> dict[str, Any]:
    """Encoded images as the model's ``mm_encoder_outputs``, in the form of its own encoder."""
    kind, listed = images[0].form

    def together(features: Iterable[Tensor]) -> Any:
        return list(features) if listed else torch.cat(list(features))[None]

    output: dict[str, Any] = {"pooler_output": together(image.features for image in images)}
    if images[0].deep:
        layers = zip(*(image.deep for image in images), strict=True)
        output["deepstack_features"] = [together(layer) for layer in layers]
    return {"image": kind(**output)}
