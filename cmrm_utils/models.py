"""Any image-text model of transformers, or a language model alone, with its decoder layers.

Everything that differs between families and that transformers does not cover is one entry in
:mod:`cmrm_utils.loading`: the path of the decoder layers.
"""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cmrm_utils.edits import PLACES, Place
from cmrm_utils.errors import InputError
from cmrm_utils.fingerprints import fingerprint, weights_state
from cmrm_utils.processors import (
    PROBE,
    UNREADABLE,
    EncodedImage,
    flat,
    make_ready,
    out_of_memory,
    plain_settings,
    rendered,
    squared,
    stacked_rows,
)
from cmrm_utils.prompts import TAG

GREY = Image.new("RGB", (64, 64), (127, 127, 127))
"""An image to test processors with."""


Way = Literal["shared", "batches", "plain"]
"""How a model's prompts run, from the fastest way to the slowest; all give the same numbers.

``shared``: rows of a batch share beginnings, leave and join. ``batches``: rows stay together, and
their images are encoded once. ``plain``: one prompt at a time, as transformers alone runs it.
"""


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
        way: the fastest way in which its prompts may run.
        checked: whether its numbers were compared with those of transformers alone
            (:func:`cmrm_utils.checks.model.check_model`); False if that was declined, and None
            for a model that was never asked for.

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
    way: Way = "shared"
    checked: bool | None = None
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
        settings = {"pad_to_square": self.pad_to_square, **plain_settings(self.processor.to_dict())}
        return settings | {
            "image_processor": plain_settings(self.processor.image_processor.to_dict())
        }

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
    def core(self) -> Any:
        """The model without its head."""
        return getattr(self.model, "model", self.model)

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
        return self.width("heads") // self.model.config.get_text_config().num_attention_heads

    def width(self, place: Place) -> int:
        """Width of the states at a place."""
        if place != "heads":
            return self.hidden_size
        try:
            return self.modules(place)[0].in_features  # type: ignore[return-value]
        except (AttributeError, InputError):  # a layer without, or of another kind
            text = self.model.config.get_text_config()
            heads = text.num_attention_heads
            return heads * (getattr(text, "head_dim", None) or self.hidden_size // heads)

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
        try:
            if self._wants_image and 0 < len(pictures) < len(texts):
                raise ValueError("some of these prompts have no image")
            inputs = self._read(texts, pictures)
        except UNREADABLE:
            if len(texts) == 1:
                raise
            # Some processors take no batch of several prompts with an image each, or without one.
            rows = [self.inputs([q], [i]) for q, i in zip(queries, images, strict=True)]
            inputs = stacked_rows(rows, self.tokenizer.pad_token_id)
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return inputs

    def _read(self, texts: list[str], pictures: list[Image.Image]) -> dict[str, Tensor]:
        """Prompts and images as the processor makes them, on the CPU."""
        if not pictures and self._wants_image:
            return self._without_image(texts)
        start = self.tokenizer.bos_token
        inputs = self.processor(
            text=texts,
            **({"images": pictures} if pictures else {}),
            padding=True,
            padding_side="left",
            add_special_tokens=not (start and texts[0].startswith(start)),
            return_tensors="pt",
        )
        return {name: value for name, value in inputs.items() if name != "labels"}

    @cached_property
    def _wants_image(self) -> bool:
        """Whether the processor reads no prompt without an image (PaliGemma's)."""
        if not self.sees_images:
            return False
        try:
            self.processor(text=[self.prompt_text(PROBE, image=False)], return_tensors="pt")
        except (TypeError, ValueError):
            return True
        return False

    def _without_image(self, texts: list[str]) -> dict[str, Tensor]:
        """A prompt for a processor that wants an image: that with one, less the image's tokens."""
        if len(texts) > 1:
            raise ValueError("one at a time")
        mark = self.processor.image_token
        inputs = self._read([mark + texts[0]], [GREY])
        shape, ids = inputs["input_ids"].shape, inputs["input_ids"]
        own = ids[0] != self.model.config.image_token_id
        return {name: value[:, own] for name, value in inputs.items() if value.shape == shape}

    @cached_property
    def placeholder(self) -> int | None:
        """The token that stands for an image in a tokenised prompt; the processor expands it.

        None if the processor changes more of a prompt than this token, and for a model without
        vision.
        """
        if not self.sees_images or self._wants_image:
            return None
        text = self.prompt_text(PROBE, image=False)
        if self._read([text], [])["input_ids"][0].tolist() != self.tokenised(text):
            return None
        mark, _ = self._expansion(self.inputs([PROBE], [GREY]))
        return mark

    @cached_property
    def _probe(self) -> tuple[list[int], set[int]]:
        """The ids of :data:`PROBE` with an image as one token, and all added tokens."""
        added = {
            number
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if not (token.lstrip or token.rstrip)
        }
        return self.tokenised(self.prompt_text(PROBE, image=True)), added

    def _expansion(self, inputs: Mapping[str, Tensor]) -> tuple[int | None, tuple[int, ...]]:
        """In the inputs of :data:`PROBE` with an image: the placeholder, and what replaces it.

        Ids that begin and end with added tokens are the same in every text: a tokenizer cuts a
        text at added tokens before all else.
        """
        whole, shape = inputs["input_ids"][0].tolist(), inputs["input_ids"].shape
        kinds = {name for name, value in inputs.items() if value.shape == shape}
        if kinds - {"input_ids", "attention_mask", "mm_token_type_ids"}:
            return None, ()  # attention differs by kind of token, too
        short, added = self._probe
        for mark in dict.fromkeys([self.model.config.image_token_id, *short]):
            if short.count(mark) == 1 and mark in added:
                at = short.index(mark)
                written = whole[at : len(whole) - (len(short) - at - 1)]
                same = short[:at] + written + short[at + 1 :] == whole
                if same and written and {written[0], written[-1]} <= added:
                    return mark, tuple(written)
        return None, ()

    def encode(self, image: Image.Image) -> EncodedImage:
        """An image after the vision tower and the projector, on the model's device.

        Raises:
            InputError: the model sees no images, the processor refuses this one, or its features
                cannot be computed apart.
        """
        self.check_sees_images()
        size = "{} x {}".format(*image.size)
        try:
            inputs = self.inputs([PROBE], [image])
        except UNREADABLE as error:
            raise InputError(f"its image of {size} pixels cannot be read: {error}") from error
        mark, written = self._expansion(inputs)
        core = self.core
        if not hasattr(core, "get_image_features"):
            raise InputError(f"{self.name}: its images cannot be encoded apart from their prompts")
        asked = inspect.signature(core.get_image_features).parameters
        given = {name: inputs[name] for name in asked if name in inputs}
        try:
            with torch.inference_mode():
                output = core.get_image_features(**given, return_dict=True)
        except RuntimeError as error:  # a tower may merge patches that a small image does not have
            if out_of_memory(error):
                raise
            raise InputError(f"its image of {size} pixels cannot be encoded: {error}") from error
        pooled = output.pooler_output
        if pooled is None:
            raise InputError(f"{self.name}: its images cannot be encoded apart from their prompts")
        listed = not isinstance(pooled, Tensor)
        deep = tuple(flat(layer) for layer in output.get("deepstack_features") or ())
        extras = {}
        if hasattr(core, "get_rope_index"):
            names = inspect.signature(core.get_rope_index).parameters
            extras = {name: given[name] for name in names if name in given}
        kept = written if mark is not None and mark == self.placeholder else None
        return EncodedImage(flat(pooled), extras, kept, deep, (type(output), listed))

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Position ids that make left padding exact: the first real token of every row is 0.

        Returns:
            ``(rows, tokens)``; ``(3, rows, tokens)`` for a family that places image tokens by
            time, height and width (Qwen-VL).
        """
        if hasattr(self.core, "get_rope_index"):
            return self.core.get_rope_index(**inputs)[0]
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

    @cached_property
    def _tags(self) -> dict[int, str]:
        """Special tokens that set reasoning apart: without them it would read as the answer."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {i: str(token) for i, token in added if TAG.fullmatch(str(token))}

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens but for the tags of hidden reasoning."""
        plain = partial(self.tokenizer.decode, skip_special_tokens=True)
        runs = groupby(ids, self._tags.get)
        return "".join(tag or plain(list(run)) for tag, run in runs).strip()
