"""The studies: what each numbered notebook asks, for those who run it without the notebook.

A plan counts the trials, and workers on other machines respond to them before the notebooks do,
which then find every response there. A test holds notebooks and lists to each other.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cmrm_utils.studies import (
    comparison,
    evaluation,
    frontier,
    gap,
    intervention,
    open_questions,
)
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial

Study = Callable[[Notebook, Mapping[str, Any]], Iterator[list[Trial]]]
"""From a notebook and its parameters to lists of trials, in the order in which they can be made."""


STUDIES: dict[str, Study] = {
    "00": lambda nb, p: iter(()),  # it answers whoever plays with it
    "01": gap.trials,
    "02": lambda nb, p: iter(()),  # it works on hidden states, which are quicker made than sent
    "03": intervention.trials,
    "04": evaluation.trials,
    "05": evaluation.trials,
    "06": comparison.trials,
    "07": frontier.trials,
    "08": lambda nb, p: iter(()),  # it works on first tokens, which are as quick
    "09": open_questions.trials,
}
"""By notebook. A list may need the responses to those before it."""
