"""Any image-text model of transformers, or a language model alone, with its decoder layers.

Everything that differs between families and that transformers does not cover is one entry in
:mod:`cmrm_utils.loading`: the path of the decoder layers, or a processor.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cmrm_utils.edits import PLACES, Place, tensor_version
from cmrm_utils.errors import InputError
from cmrm_utils.prompts import CHAT_TEMPLATE

PROBE = "Why is it so?"
"""A query to test chat templates with."""


CHUNK, BLOCK = 2**20, 1024
"""Of a fingerprint: weights that are read at a time, and pairs of weights in each sum."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image after the vision tower and the projector.

    Attributes:
        features: ``(image tokens, hidden)``, which replace the embeddings of the image's tokens.
        extras: what else a family needs for positions (Qwen-VL's grid).
    """

    features: Tensor
    extras: dict[str, Tensor]


@dataclass(eq=False)
class VLM:
    """A vision-language model, with all that prompting and editing need.

    Attributes:
        name: the name it was loaded by.
        model: the transformers model, in evaluation mode.
        processor: its processor, whose chat template makes the prompts; for a language model
            alone, its tokenizer.
        layers: the language model's decoder layers, in order.
        system: a system prompt before every query; None for the template's own.
        pad_to_square: whether images are padded to a square before preprocessing.
        batch_size: most rows in a batch of generation; fewer if memory holds fewer.

    Raises:
        InputError: the chat template is missing, drops the query or the image, or takes no system
            prompt; there is no token to pad with; ``pad_to_square`` for a model without vision.
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
                takes_system = self.system in self.prompt_text("", image=False)
            except TemplateError:
                takes_system = False
            if not takes_system:
                raise InputError(f"{self.name}: its chat template takes no system prompt")

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the weights and of all settings of prompts, images and end tokens.

        It is computed again when one of them has changed (:func:`weights_state`).
        """
        settings = self._settings()
        text = json.dumps(settings, sort_keys=True, default=str)
        state = (text, weights_state(self.model.parameters()))
        if state not in self._fingerprints:
            self._fingerprints.clear()
            self._fingerprints[state] = fingerprint(self.model, settings)
        return self._fingerprints[state]

    def _settings(self) -> dict[str, Any]:
        """All settings that decide a response, beside weights and configuration."""
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
        """A value that changes whenever images would be encoded differently."""
        decoder = {id(p) for layer in self.layers for p in layer.parameters()}
        others = [p for p in self.model.parameters() if id(p) not in decoder]
        return (json.dumps(self.pictures, default=str), *weights_state(others))

    @property
    def pictures(self) -> dict[str, Any]:
        """Settings of image preprocessing; empty for a model without vision."""
        if not self.sees_images:
            return {}
        settings = {"pad_to_square": self.pad_to_square, **_plain(self.processor.to_dict())}
        return settings | {"image_processor": _plain(self.processor.image_processor.to_dict())}

    @property
    def ends(self) -> set[int]:
        """Token ids that end a response; may be empty."""
        ids: Any = self.model.generation_config.eos_token_id
        return set() if ids is None else {ids} if isinstance(ids, int) else {*ids}

    def tokenised(self, text: str) -> list[int]:
        """The ids of a whole prompt, with one token per image and exactly one start token."""
        start = self.tokenizer.bos_token
        special = not (start and text.startswith(start))
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    @property
    def vocabulary(self) -> int:
        """Number of logits per token."""
        return self.model.config.get_text_config().vocab_size

    @property
    def sees_images(self) -> bool:
        """Whether the model takes images; a language model alone takes only text."""
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
            InputError: a layer has no such module.
        """
        modules = []
        for i, layer in enumerate(self.layers):
            try:
                modules.append(layer.get_submodule(PLACES[place]))
            except AttributeError as error:
                raise InputError(
                    f"{self.name}: decoder layer {i} has no {PLACES[place]}, so its {place} can "
                    "neither be read nor edited; see PLACES in edits.py"
                ) from error
        return tuple(modules)

    @property
    def device(self) -> torch.device:
        """The device for inputs: that of the token embeddings, or where they run if offloaded."""
        embeddings = self.model.get_input_embeddings()
        if embeddings.weight.device.type == "meta":
            return torch.device(embeddings._hf_hook.execution_device)
        return embeddings.weight.device

    @property
    def image_tokens(self) -> int:
        """Number of tokens that one image takes, counted in a real prompt."""
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

        The system prompt comes right before ``USER:`` in a template of Vicuna's form, as in
        Vicuna's training; otherwise it is the system message.
        """
        text = rendered(self.processor, ("user", query), image=image)
        if self.system is None:
            return text
        if text.startswith("USER: "):
            return f"{self.system} {text}"
        turns = ("system", self.system), ("user", query)
        return rendered(self.processor, *turns, image=image)

    def inputs(
        self, queries: Sequence[str], images: Sequence[Image.Image | None]
    ) -> dict[str, Tensor]:
        """Model inputs for a batch, left-padded; rows with and without image may mix.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(rows, tokens)``, and for images
            ``pixel_values`` and what else the family needs, on the model's device.

        Raises:
            InputError: an image for a model that sees none.
        """
        texts = [
            self.prompt_text(query, image=image is not None)
            for query, image in zip(queries, images, strict=True)
        ]
        pictures = [image for image in images if image is not None]
        if pictures:
            self.check_sees_images()
        if self.pad_to_square:
            pictures = [squared(i, self.processor.image_processor.image_mean) for i in pictures]
        start = self.tokenizer.bos_token
        inputs = self.processor(
            text=texts,
            **({"images": pictures} if pictures else {}),
            padding=True,
            padding_side="left",
            add_special_tokens=not (start and texts[0].startswith(start)),
            return_tensors="pt",
        )
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return inputs

    def encode(self, image: Image.Image) -> EncodedImage:
        """An image after the vision tower and the projector, on the model's device.

        Raises:
            InputError: the model sees no images.
        """
        self.check_sees_images()
        reader = self.processor.image_processor
        if self.pad_to_square:
            image = squared(image, reader.image_mean)
        inputs = reader(images=[image], return_tensors="pt").to(self.device)
        pixels = inputs.pop("pixel_values").to(self.model.dtype)
        with torch.inference_mode():
            output = self.model.model.get_image_features(pixels, **inputs, return_dict=True)
        return EncodedImage(torch.cat(list(output.pooler_output)), dict(inputs))

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Position ids that make left padding exact: the first real token of every row is 0.

        Returns:
            ``(rows, tokens)``; ``(3, rows, tokens)`` for a family that places image tokens by
            time, height and width (Qwen-VL).
        """
        if hasattr(self.model.model, "get_rope_index"):
            return self.model.model.get_rope_index(**inputs)[0]
        return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)

    def extended(
        self, inputs: Mapping[str, Tensor], answers: Iterable[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Inputs with the token ids of an answer appended to each row.

        Returns:
            The inputs, and the answers' ids and mask, right-padded: ``(rows, longest)`` each.
        """
        rows = list(answers)
        ids = pad_sequence(rows, True, self.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], True)
        batch = dict(inputs)
        batch["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        batch["attention_mask"] = torch.cat([inputs["attention_mask"], mask], dim=1)
        if "mm_token_type_ids" in batch:  # 0 is text
            batch["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, ids.shape[1]))
        return batch, ids, mask

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


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


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
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


def fingerprint(model: Any, settings: Mapping[str, Any] | None = None) -> str:
    """16 hex digits of the configuration, the weights (:func:`_checksums`), and settings."""
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

    Integer sums, which wrap round, are equal on every device.
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
