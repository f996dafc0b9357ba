"""Whether an answer is right, and the scores in a pairwise review."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from cmrm_utils.judges.keywords import plain_marks
from cmrm_utils.prompts import spoken


def parse_choice(text: str, choices: Sequence[str]) -> int | None:
    """The option that a ScienceQA response chooses, as an index; None where it chooses none.

    The forms are tried in LLaVA's order: a letter alone; a leading letter before a period, a colon,
    a comma, a dash, a bracket, "because" or the end of the line; exactly one "the answer is X".
    Case, brackets, quotes, the width of letters and Markdown do not matter. An "a" before another
    word is no letter.
    """
    text = re.sub(_WRAPPING, "", plain_marks(spoken(text)).replace("、", ",")).strip()
    first = re.fullmatch(rf"{_LETTER}[)\]]?[.:,]?", text) or re.match(_LETTER + _SET_OFF, text)
    phrase = rf"(?i:answer(?: is:?|:)) *(?i:option )?{_LETTER}{_SET_OFF}"
    matches = [first] if first else list(re.finditer(phrase, text))
    if len(matches) != 1:
        return None
    index = ascii_uppercase.index(matches[0]["letter"].upper())
    return index if index < len(choices) else None


_WRAPPING = r"[*\"]|(?<!\w)['_]+|['_]+(?!\w)"
"""Quotes and Markdown around words; an apostrophe within a word stays."""


_LETTER = r"[(\[]?(?P<letter>[A-Za-z])"


_SET_OFF = r"(?:[)\]]|[.:,;](?=\s|$)|\s*(?:\n|$)|\s+(?:[-–—]+\s|because\b))"


_SCORE = r"(\d+(?:\.\d+)?)(?:\s*/\s*10)?"


_SCORES = re.compile(rf"(?:[^\d:]*:\s*)?[(\[]?{_SCORE}(?:\s*[,;]\s*|\s+){_SCORE}[)\]]?\.?")


def parse_pair_scores(text: str) -> tuple[float, float] | None:
    """The reference's and the candidate's score in a pairwise review; None without two scores.

    The first line must consist of the two numbers, alone or after "Scores:", each perhaps with
    "/10". Numbers within a sentence ("Assistant 1 is better than 2") are no scores.
    """
    match = _SCORES.fullmatch(spoken(text).replace("*", "").strip().partition("\n")[0].strip())
    return (float(match[1]), float(match[2])) if match else None


def is_right(response: str, answer: str, choices: Sequence[str] | None = None) -> bool:
    """Whether a response gives the answer.

    Letter case, spaces, quotes, Markdown and a final period do not matter.
    """
    if choices:
        chosen = parse_choice(response, choices)
        return chosen is not None and ascii_uppercase[chosen] == answer
    return _plain(spoken(response)) == _plain(answer)


def mentions(response: str, answer: str) -> bool:
    """Whether a response has the answer in it, as whole words: one can say a fact in many ways.

    A number is none of the digits of a longer one: 5 is not in 1.5.
    """
    start, end = r"(?<!\w)(?:(?<!\d[.,])|(?!\d))", r"(?!\w)(?:(?![.,]\d)|(?<!\d))"
    words = re.escape(_plain(answer))
    return re.search(f"{start}{words}{end}", _plain(spoken(response))) is not None


def _plain(text: str) -> str:
    text = re.sub(_WRAPPING, "", plain_marks(text).casefold())
    return " ".join(text.split()).rstrip(".!").rstrip()
