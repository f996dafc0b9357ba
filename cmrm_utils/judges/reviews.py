"""Pairwise reviews: a reviewer scores a reference answer and a candidate answer (LLaVA-Bench).

The relative score is 100 x mean(candidate) / mean(reference). Replies are stored word for word. A
reply without two scores on its first line is counted, but does not enter a mean.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cmrm_utils.engine.loops import generate, progress_bar
from cmrm_utils.errors import InputError
from cmrm_utils.fingerprints import fingerprint
from cmrm_utils.judges.answers import parse_pair_scores
from cmrm_utils.judges.reader import Reader, load_reader, own_prompt, questions
from cmrm_utils.prompts import spoken
from cmrm_utils.results.intervals import bootstrap
from cmrm_utils.store import Records, hashed

_PROMPT = own_prompt("review")


TRANSIENT = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which a request is retried."""


class Reviewer(Protocol):
    """Anything that answers a prompt; ``identity`` tells one reviewer from another."""

    @property
    def identity(self) -> str:
        """What the reviewer is, and where it runs."""

    def __call__(self, prompt: str) -> str:
        """The reply to one prompt."""


@dataclass(frozen=True)
class Endpoint:
    """A reviewer behind an OpenAI-compatible endpoint.

    Attributes:
        url: base URL of the API, as in ``https://host/v1``.
        model: the model's name at the endpoint.
        key: sent as a bearer token, unless empty; never written anywhere.
        settings: further fields of each request.
        tries: requests before it gives up.
        pause: seconds before the second try; the pause doubles with each further try.
        timeout: seconds that a request may take.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    tries: int = 6
    pause: float = 1.0
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"review endpoint {self.url!r}: expected http:// or https://")

    @classmethod
    def from_environment(cls, model: str, url: str = "") -> "Endpoint":
        """The endpoint at ``url``, or else at ``OPENAI_BASE_URL``, with the key ``OPENAI_API_KEY``.

        Raises:
            InputError: no base URL is given or set.
        """
        if not (url := url or os.environ.get("OPENAI_BASE_URL", "")):
            raise InputError(
                f"reviewer {model!r} is not a folder, so it must be an endpoint's model: set "
                "OPENAI_BASE_URL (as in http://localhost:8000/v1) and, if needed, OPENAI_API_KEY"
            )
        return cls(url, model, os.environ.get("OPENAI_API_KEY", ""))

    @property
    def identity(self) -> str:
        """Base URL, model and settings."""
        return f"{self.url} {self.model} {json.dumps(dict(self.settings), sort_keys=True)}"

    def __call__(self, prompt: str) -> str:
        """The reply to one prompt; transient failures are retried after a pause.

        Raises:
            InputError: the endpoint refuses, stays silent, or does not send a chat completion.
        """
        message = {"role": "user", "content": prompt}
        body = {"model": self.model, "messages": [message], **self.settings}
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        target = f"{self.url.rstrip('/')}/chat/completions"
        request = Request(target, json.dumps(body).encode(), headers)
        failure = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with urlopen(request, timeout=self.timeout) as answer:
                    raw = answer.read()
            except HTTPError as error:
                reply = error.read(300).decode(errors="replace")
                failure = f"HTTP {error.code} {' '.join(reply.split())}"
                if error.code not in TRANSIENT:
                    raise InputError(f"review endpoint {target}: {failure}") from error
            except (OSError, HTTPException) as error:  # no connection, a timeout, half an answer
                failure = str(error)
            else:
                return _content(raw, target)
        raise InputError(f"review endpoint {target}: gave up after {self.tries} tries ({failure})")


def _content(raw: bytes, target: str) -> str:
    try:
        text = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        start = raw[:200].decode(errors="replace")
        raise InputError(f"review endpoint {target}: not a chat completion: {start!r}") from error
    if not isinstance(text, str):
        raise InputError(f"review endpoint {target}: its message is {text!r}, not text")
    return text


@dataclass(frozen=True, eq=False)
class LocalReviewer:
    """A reviewer that is a language model on this machine; it decodes greedily.

    Attributes:
        reader: the model.
        max_new_tokens: a reply is cut there; only its first line counts.
    """

    reader: Reader
    max_new_tokens: int = 256

    @property
    def identity(self) -> str:
        """The model's fingerprint and the token limit."""
        return f"{fingerprint(self.reader.model)} {self.max_new_tokens}"

    def __call__(self, prompt: str) -> str:
        """The reply to one prompt."""
        trials = questions([self.reader.chat(prompt)])
        return generate(self.reader, trials, max_new_tokens=self.max_new_tokens)[0]


def load_reviewer(name: str, url: str = "") -> Reviewer:
    """A reviewer by name: a model in a local folder, or else a model of an endpoint.

    Args:
        name: a folder, or the model's name at the endpoint.
        url: base URL of the endpoint's API; by default ``OPENAI_BASE_URL``. The key comes from
            ``OPENAI_API_KEY`` alone, so that none is written into a notebook.

    Raises:
        InputError: the folder has no model; no endpoint is given or set in the environment.
    """
    if not url and Path(name).is_dir():
        return LocalReviewer(load_reader(name))
    return Endpoint.from_environment(name, url)


@dataclass(frozen=True)
class Reply:
    """A reviewer's reply, word for word."""

    text: str


def review_prompt(question: str, reference: str, candidate: str, caption: str | None = None) -> str:
    """A reviewer's prompt; the reference answer comes first. Hidden reasoning is left out.

    Args:
        question: a question about the image.
        reference: the answer against which the candidate is measured.
        candidate: the answer to score.
        caption: the image in words; None without a caption.
    """
    context = f"[the image in words]\n{caption}\n[end of image]\n\n" if caption else ""
    return _PROMPT.format(
        context_note=", but it is described in words" if caption else "",
        context=context,
        question=question,
        reference=spoken(reference),
        candidate=spoken(candidate),
    )


def review(
    rows: pd.DataFrame, reviewer: Reviewer, *, out: Path | None = None, progress: bool = False
) -> pd.DataFrame:
    """Review every response against its reference answer.

    Args:
        rows: ``query, answer`` (the reference), ``response``, and perhaps ``caption``; other
            columns are kept.
        reviewer: who reviews.
        out: a JSON-lines file that raw replies stream to and are resumed from.
        progress: show a bar.

    Returns:
        The rows with ``reply``, ``reference_score`` and ``candidate_score``; both scores are NaN
        where the reply does not begin with two scores.

    Raises:
        InputError: a row has no reference; ``out`` holds replies of another reviewer or prompt; the
            endpoint fails. Earlier replies stay in ``out``.
    """
    if lacking := list(rows.index[rows["answer"].isna()]):
        raise InputError(f"row {lacking[0]!r} has no reference answer to review against")
    captions = rows["caption"].astype(object).fillna("") if "caption" in rows else [""] * len(rows)
    texts = zip(rows["query"], rows["answer"], rows["response"], captions, strict=True)
    prompts = [review_prompt(*row) for row in texts]
    shared = {"reviewer": reviewer.identity, "prompt": hashed([_PROMPT])}
    known = Records(out, shared, Reply)
    every = {hashed([prompt], 24): prompt for prompt in prompts}
    todo = [key for key in every if key not in known.all]
    bar = progress_bar(len(todo), "reviews", progress, unit="review")
    with bar, known.appending() if todo else nullcontext():
        for key in todo:
            known.add([(key, Reply(reviewer(every[key])))])
            bar.update()
    replies = [known.all[hashed([prompt], 24)].text for prompt in prompts]
    scores = np.array([parse_pair_scores(text) or (np.nan, np.nan) for text in replies])
    first, second = scores.reshape(-1, 2).T
    return rows.assign(reply=replies, reference_score=first, candidate_score=second)


def relative_scores(reviews: pd.DataFrame) -> pd.DataFrame:
    """LLaVA-Bench's relative score, over all reviews and by kind of question.

    Args:
        reviews: rows of :func:`review`, with ``kind``.

    Returns:
        ``kind`` (``all`` first), ``score`` (100 x mean candidate / mean reference over the reviews
        with scores; NaN where there are none, or all references score 0), its 95% bootstrap
        interval ``low, high``, ``reviews`` (how many have scores) and ``unparsed`` (how many have
        none).
    """
    rows = []
    for kind, part in [("all", reviews), *reviews.groupby("kind", sort=False)]:
        pairs = part[["reference_score", "candidate_score"]].dropna().to_numpy(float)
        score, low, high = bootstrap(partial(_relative, pairs), range(len(pairs)))
        counts = {"reviews": len(pairs), "unparsed": len(part) - len(pairs)}
        rows.append({"kind": kind, "score": score, "low": low, "high": high, **counts})
    return pd.DataFrame(rows)


def _relative(pairs: NDArray, counts: NDArray) -> NDArray:
    """The relative score of each resample, out of how often it holds each pair of scores."""
    reference, candidate = (counts @ pairs).T
    return 100 * candidate / reference
