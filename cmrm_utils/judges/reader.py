"""Reader: a model that is given whole prompts, with no chat template around them.

Judges and reviewers are asked through it. Their questions then run on the engine as text-only
trials.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cmrm_utils.errors import InputError
from cmrm_utils.loading import load_vlm
from cmrm_utils.models import VLM
from cmrm_utils.prompts import CHAT_TEMPLATE
from cmrm_utils.sample import Sample
from cmrm_utils.trials import Trial

_SAMPLE = Sample("question", "A question to a judge or a reviewer.")
"""The sample of every question; its id stands in the engine's error messages."""


def own_prompt(name: str) -> str:
    """A prompt of the workbook's own: the text in ``prompts/`` beside this file."""
    path = Path(__file__).parent / "prompts" / f"{name}.txt"
    return path.read_text(encoding="utf-8").removesuffix("\n")


class Reader(VLM):
    """A model whose prompts are complete texts: a trial's text is what the model reads."""

    @classmethod
    def of(cls, vlm: VLM) -> "Reader":
        """A reader of a model that is already in memory."""
        return cls(vlm.name, vlm.model, vlm.processor, vlm.layers)

    def prompt_text(self, query: str, *, image: bool) -> str:
        """The text, unchanged.

        Raises:
            InputError: it is longer than the model's context.
        """
        longest = self.model.config.get_text_config().max_position_embeddings
        if (length := len(self.tokenised(query))) > longest:
            raise InputError(
                f"a text of {length} tokens for a model that reads {longest}: cut the responses"
            )
        return query

    def chat(self, *turns: str) -> str:
        """A chat in the model's own template, ready for the model's answer.

        The answer begins without reasoning: ``enable_thinking`` is False for templates that know
        it, and a ``<think>`` that the template opens all the same is closed.

        Args:
            turns: what is said, by the user first and by the assistant second.

        Raises:
            InputError: the model has no chat template of its own.
        """
        if self.processor.chat_template == CHAT_TEMPLATE:
            raise InputError(f"{self.name}: its tokenizer has no chat template")
        roles = ("user", "assistant")[: len(turns)]
        text = self.processor.apply_chat_template(
            [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=False,
        )
        if text.rstrip().endswith("<think>"):
            text = f"{text.rstrip()}\n\n</think>\n\n"
        # Llama Guard's template stops before the blank line that every answer begins with.
        return f"{text}\n\n" if text.endswith("<|end_header_id|>") else text


def load_reader(name_or_path: str | Path, **loading: Any) -> Reader:
    """Load a reader from the hub or a folder.

    Args:
        name_or_path: a hub id or a folder.
        loading: passed to :func:`~cmrm_utils.loading.load_vlm`.

    Raises:
        InputError: no model can be loaded from there.
    """
    return Reader.of(load_vlm(name_or_path, **loading))


def questions(texts: Iterable[str]) -> list[Trial]:
    """Whole prompts as text-only trials for the engine."""
    return [Trial(_SAMPLE, "none", prompt=text) for text in texts]
