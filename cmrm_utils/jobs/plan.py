"""What a run will cost: its trials, their tokens, and the time a short probe says they take."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from PIL import Image

from cmrm_utils.conditions import DEFAULT_SIZE
from cmrm_utils.engine.loops import generate
from cmrm_utils.engine.memory import token_bytes
from cmrm_utils.engine.plan import distinct, in_order
from cmrm_utils.errors import InputError
from cmrm_utils.models import VLM
from cmrm_utils.store import Response
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.registry import STUDIES
from cmrm_utils.trials import Trial


def plan(experiments: Sequence[tuple[str, Mapping[str, Any]]], *, probe: int) -> pd.DataFrame:
    """Count what a run's notebooks ask for, and time a few trials of each list.

    Args:
        experiments: numbers of notebooks, and their parameters.
        probe: how many trials of each list are run; 0 for none.

    Returns:
        A row a list: ``notebook, list, trials`` (new ones: a run asks nothing twice), ``prompt
        tokens``, of which ``computed`` (shared beginnings once), ``response tokens`` at most,
        ``GB`` of memory at most (:func:`gigabytes`), and where there was a probe ``seconds a
        trial`` and ``hours``.

    Raises:
        InputError: the notebooks ask for nothing.
    """
    _, first = experiments[0]
    options = {name: first[name] for name in ("model", "data", "max_new_tokens", "settings")}
    rows = []
    ids: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        # Empty responses: what later lists need of them changes no count.
        nothing = Response("", (), finished=True)
        nb = Notebook.open(
            "plan", out=folder, respond=lambda trials: [nothing] * len(trials), dry=True, **options
        )
        for number, parameters in experiments:
            for place, trials in enumerate(STUDIES[number](nb, parameters), start=1):
                new = list({t.id: t for t in trials if t.id not in ids}.values())
                ids |= {trial.id for trial in new}
                if new:
                    whole, computed, longest = prompt_tokens(nb.vlm, new)
                    row = {
                        "notebook": number,
                        "list": place,
                        "trials": len(new),
                        "prompt tokens": whole,
                        "computed": computed,
                        "response tokens": len(new) * nb.max_new_tokens,
                        "GB": gigabytes(nb.vlm, longest + nb.max_new_tokens),
                    }
                    rows.append({**row, **(_probed(nb, new, probe) if probe else {})})
    if not rows:
        raise InputError("these notebooks ask the model nothing")
    return pd.DataFrame(rows)


def _probed(nb: Notebook, trials: Sequence[Trial], count: int) -> dict[str, float]:
    """Time evenly spaced trials. A few run first, untimed, to warm the machine up."""
    some = trials[:: max(1, len(trials) // count)][:count]
    generate(nb.vlm, some[:4], max_new_tokens=nb.max_new_tokens)
    begun = time.perf_counter()
    generate(nb.vlm, some, max_new_tokens=nb.max_new_tokens)
    seconds = (time.perf_counter() - begun) / len(some)
    return {"seconds a trial": seconds, "hours": seconds * len(trials) / 3600}


def gigabytes(vlm: VLM, tokens: int) -> float:
    """Memory for the weights, and at most for a full batch of rows of so many tokens."""
    return (vlm.model.get_memory_footprint() + vlm.batch_size * tokens * token_bytes(vlm)) / 1e9


def prompt_tokens(vlm: VLM, trials: Sequence[Trial]) -> tuple[int, int, int]:
    """The prompt tokens of trials, how many of them are computed, and those of the longest prompt.

    Every image counts as many tokens as a grey one; a shared beginning is computed once.
    """
    grey = Image.new("RGB", DEFAULT_SIZE, (127, 127, 127))
    image = len(vlm.encode(grey).features) if vlm.sees_images else 0
    whole, computed, longest, seen = 0, 0, 0, set()
    for prompt in in_order(vlm, distinct(trials)[1]):
        length = len(prompt.ids) + (image - 1 if prompt.image_at is not None else 0)
        shared = prompt.shared + (image - 1 if prompt.shares_image else 0)
        whole, longest = whole + length, max(longest, length)
        computed += length - (shared if prompt.beginning in seen else 0)
        if shared:
            seen.add(prompt.beginning)
    return whole, computed, longest
