"""The trials of the numbered notebooks, made without them.

A plan counts them, and workers on other machines run them before the notebooks do, which then find
every response there. A test holds the two to each other.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cmrm_utils import open_questions as ask
from cmrm_utils.methods import CMRM, controls, ways
from cmrm_utils.notebook import ANCHORS, Notebook
from cmrm_utils.trials import CONDITIONS, Trial, grid, neutral
from cmrm_utils.vectors import refusal_direction

Lists = Iterator[list[Trial]]


def representation_gap(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """01: every image condition."""
    yield grid(nb.samples("validation", p["n"], "harmful", "benign"), images=CONDITIONS)


def vector_extraction(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """02: none; it works on hidden states, which are quicker made than sent."""
    yield from ()


def cmrm_intervention(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """03: examples, ways and reaches, controls, neutral words."""
    anchors = nb.samples("anchors", ANCHORS, "harmful")
    benign = nb.samples("anchors", ANCHORS, "benign")
    v = nb.shift(anchors, "harmful_blank")
    tests = controls(
        v,
        p["alpha"],
        refusal=refusal_direction(nb.vlm, anchors, benign),
        benign=nb.shift(benign, "benign_blank"),
    )
    requests = nb.samples("validation", p["n"], "harmful", "benign")
    questions = nb.questions("validation", p["n"])
    examples = nb.samples("validation", 3, "harmful", "benign")
    edit = CMRM(v, p["alpha"])
    yield [
        *grid(examples, images=["none", "own"]),
        *grid(examples, edits=[edit]),
        *grid([*requests, *questions], edits=[None, *ways(v, p["alphas"]), *tests]),
        *neutral(requests, nb.vlm.image_tokens),
        *grid(requests, images=["none"], edits=[None, edit]),
    ]


def evaluation(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """04: alphas on the validation split; the test split at those then chosen."""
    _, levels, samples = nb.compared(p["n"])
    plain, edited = nb.sweep_trials(levels, samples, p["alphas"])
    yield plain + edited
    plain, edited = nb.test_trials(p["n_test"], nb.sweep(p["alphas"], p["n"]))
    yield plain + edited


def utility(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """05: those of 04, and open questions where there is somebody to review the answers."""
    yield from evaluation(nb, p)
    if p.get("reviewer"):
        yield nb.open_trials(p["n_test"], nb.sweep(p["alphas"], p["n"]))


def open_questions(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """08: but for the adversarial pictures, which are searched where the notebook runs."""
    nb.vlm.check_sees_images()
    n, n_test = p["n"], p["n_test"]
    _, levels, samples = nb.compared(n)
    plain, edited = nb.sweep_trials(levels, samples, p["alphas"])
    yield plain + edited
    swept = nb.sweep(p["alphas"], n)
    assert swept.vectors is not None
    alpha = swept.chosen["CMRM dataset"]
    sets = ask.anchor_sets(nb, sizes=p["sizes"], draws=p["draws"])
    yield [
        *ask.anchor_trials(nb, sets, alpha, p["doses"], p["n_sets"]),
        *ask.family_trials(nb, sets, alpha, p["n_sets"]),
        *(trial for asked in ask.beyond_trials(nb, swept, n_test).values() for trial in asked),
        *ask.extended_trials(nb, swept, n_test),
        *ask.perturbed_trials(nb, swept, n_test),
        *ask.gate_trials(nb, swept.vectors, "validation", n, p["alphas"]).trials,
    ]
    _, chosen = ask.gate_curves(nb, swept.vectors, p["alphas"], n)
    yield ask.gate_trials(nb, swept.vectors, "test", n_test, chosen).trials


EXPERIMENTS: dict[str, Callable[[Notebook, Mapping[str, Any]], Lists]] = {
    "01": representation_gap,
    "02": vector_extraction,
    "03": cmrm_intervention,
    "04": evaluation,
    "05": utility,
    "08": open_questions,
}
"""By notebook: lists of trials in the order in which they can be made, given the notebook's
parameters. A list may need the responses to those before it."""
