"""Notebook 09: answers that it judges; what is measured at first tokens is not shared out."""

from collections.abc import Iterator, Mapping
from typing import Any

from cmrm_utils.studies import abilities
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial


def trials(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """09: answers to the questions that need reasoning."""
    nb.vlm.check_sees_images()
    if nb.world:
        yield from abilities.extended_trials(nb, p["alphas"], p["n_test"])
    else:
        lists = abilities.reasoning_trials(nb, p["alphas"], p["n_reasoning"])
        yield [trial for these in lists.values() for trial in these]
