"""Prompt texts that data sets, experiments and the organism share."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

_TAG = r"(?:[<◁]\s*{}(?:think|thinking|thoughts?|reasoning)\s*[>▷]|(?-i:\[{}THINK\]))"


_TALK = rf"(?:(?<![`'\"“]){_TAG}|{_TAG}(?![`'\"”]))"  # not within quotes


_OPENS, _CLOSES = _TALK.replace("{}", ""), _TALK.replace("{}", "/")


_BLOCK = re.compile(rf"{_OPENS}.*?{_TAG.replace('{}', '/')}", re.I | re.S)


_BEGUN = re.compile(rf"\A.*{_CLOSES}", re.I | re.S)


_CUT = re.compile(rf"{_OPENS}.*", re.I | re.S)


_ANSWER = re.compile(r"</?answer>|<\|(?:begin|end)_of_box\|>", re.I)


TAG = re.compile(_TAG.replace("{}", "/?"), re.I)
"""A tag of hidden reasoning (:func:`spoken`)."""


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Vicuna's system prompt, with which LLaVA-1.5 was trained and evaluated (its ``vicuna_v1``)."""


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""LLaVA-1.5's chat template in transformers: images, then text, no system prompt."""


CAPTION_QUERY = "Describe the image."
"""Asks a model for its own caption of an image."""


CAPTION_FOR_QUERY = "Describe what the image shows, as far as it matters for this: {query}"
"""Asks for a caption in view of the request, as ECSO does, in our words."""


def caption_prompt(caption: str, query: str) -> str:
    """The query with a caption in the image's place (condition ``caption``)."""
    return f"Image caption: {caption}\n{query}"


def choice_prompt(question: str, choices: Sequence[str], hint: str | None = None) -> str:
    """A multiple-choice question in LLaVA-1.5's ScienceQA wording, of at most 26 choices."""
    context = f"Context: {hint}\n" if hint else ""
    options = "\n".join(map("{}. {}".format, ascii_uppercase, choices))
    ask = "Answer with the option's letter from the given choices directly."
    return f"{context}{question}\n{options}\n{ask}"


def spoken(text: str) -> str:
    """A response without its hidden reasoning.

    Reasoning is the text in ``<think>...</think>`` (or ``thinking``, ``reasoning``, in upper or
    lower case, or ``[THINK]``, once or several times). If the prompt opened the tag, it is the text
    before ``</think>``; if the token limit cut it, the text after ``<think>``. A tag in quotes is a
    mention and stays. Tags around the answer are removed too. A text without tags stays as it is.

    Example:
        >>> spoken("<think>Which one? Four sides.</think> B")
        'B'
        >>> spoken("<think>It has four sides, so")
        ''
    """
    words = _CUT.sub("", _BEGUN.sub("", _BLOCK.sub("", text)))
    words = _ANSWER.sub("", words)
    return words if words == text else words.strip()
