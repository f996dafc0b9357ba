"""The few prompt texts that data sets, experiments and the organism share."""

from collections.abc import Sequence
from string import ascii_uppercase


def caption_prompt(caption: str, query: str) -> str:
    """The query with a caption where the image would stand (condition ``caption``)."""
    return f"Image caption: {caption}\n{query}"


def choice_prompt(question: str, choices: Sequence[str], hint: str | None = None) -> str:
    """A multiple-choice question in LLaVA-1.5's ScienceQA wording.

    Raises:
        ValueError: more choices than there are letters.
    """
    if len(choices) > len(ascii_uppercase):
        raise ValueError(f"{len(choices)} choices, but only {len(ascii_uppercase)} letters")
    context = f"Context: {hint}\n" if hint else ""
    options = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)
    )
    ask = "Answer with the option's letter from the given choices directly."
    return f"{context}{question}\n{options}\n{ask}"
