"""The trials of the numbered notebooks, made without them.

A plan counts them, and workers on other machines run them before the notebooks do, which then find
every response there. A test holds the two to each other.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cmrm_utils.conditions import CONDITIONS
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.studies import abilities, anatomy, comparison, gating, pictures
from cmrm_utils.studies import anchors as ask
from cmrm_utils.studies.ablations import Ablations, ordered
from cmrm_utils.studies.intervention import controls, neutral, ways
from cmrm_utils.studies.notebook import ANCHORS, Notebook
from cmrm_utils.studies.variants import (
    LEVELS,
    UNDONE,
    full_variants,
    grid_variants,
    head_variants,
    layer_variants,
    mlp_variants,
    token_variants,
    with_alphas,
)
from cmrm_utils.trials import Trial, grid
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
    plain, edited = nb.test_trials(p["n_test"], nb.strengths(p["alphas"], p["n"]))
    yield plain + edited


def utility(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """05: those of 04, and open questions where there is somebody to review the answers."""
    yield from evaluation(nb, p)
    if p.get("reviewer"):
        yield nb.open_trials(p["n_test"], nb.strengths(p["alphas"], p["n"]))


def defence_comparison(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """06: captions, every defence in every setting, the parts of the shift, the test."""
    samples, chosen_on = comparison.tested(nb, p["n_test"]), comparison.tried(nb, p["n"])
    anchors = [sample for these in comparison.anchors(nb) for sample in these]
    yield comparison.caption_trials([*anchors, *chosen_on, *samples])
    compared = comparison.defences(p["grids"], p["alphas"])
    yield nb.plainly(chosen_on)
    for _, lists in comparison.sweep_lists(nb, compared, chosen_on):
        yield [trial for trials in lists.values() for trial in trials]
    yield [
        *anatomy.part_trials(nb, p["n_parts"], p["doses"]),
        *anatomy.shift_trials(nb, p["n_test"]),
    ]
    swept = comparison.sweep(nb, compared, p["n"])
    lists = comparison.test_lists(nb, compared, swept.chosen, samples)
    yield [trial for trials in lists.values() for trial in trials]


def ablation(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """07: alphas on the validation split; the test split at those then chosen."""
    ab, level = Ablations(nb, p["n"], p["n_test"]), p["level"]
    full = full_variants()
    layers = layer_variants(level, ab.layers, p["most"])
    alone = [variant for variant in layers if variant.labels["set"] == "alone"]
    kinds = token_variants(level)
    order = ordered(ab.head_effects(level))
    heads = head_variants(level, nb.vlm, order, p["counts"])
    random = head_variants(level, nb.vlm, order, p["counts"], draws=p["draws"])
    tried = [
        (alone, p["layer_alphas"]),
        (kinds, p["token_alphas"]),
        (heads, p["head_alphas"]),
    ]
    pairs = [(v, a) for variants, alphas in tried for v in variants for a in alphas]
    _, levels, samples = nb.compared(p["n"])
    plain, edited = nb.sweep_trials(levels, samples, p["alphas"])
    yield [*plain, *edited, *ab.trials("validation", pairs)]
    chosen = ab.chosen(p["alphas"])
    own, by_kind, by_count = (ab.choose(*each) for each in tried)
    alpha = chosen[level]
    grid = grid_variants(level, ab.layers, p["most"])
    mlps = mlp_variants(level, ab.layers, p["most"])
    parts = ab.rank_variants(LEVELS, p["ranks"])
    yield [
        *ab.trials("test", None),
        *ab.trials("test", with_alphas(full, chosen)),
        *ab.trials("test", with_alphas(layers, alpha), harmful=True),
        *ab.trials("test", with_alphas(alone, own)),
        *ab.trials("test", with_alphas(kinds, alpha)),
        *ab.trials("test", with_alphas(kinds, by_kind)),
        *ab.trials("test", with_alphas(grid, max(own.values())), harmful=True),
        *ab.trials("test", with_alphas(heads, UNDONE)),
        *ab.trials("test", with_alphas(heads, by_count)),
        *ab.trials("test", with_alphas(random, UNDONE), harmful=True),
        *ab.trials("test", with_alphas(random, by_count), harmful=True),
        *ab.trials("test", with_alphas(mlps, UNDONE), harmful=True),
        *ab.trials("test", with_alphas(parts, chosen), harmful=True),
    ]


def open_questions(nb: Notebook, p: Mapping[str, Any]) -> Lists:
    """08: but for the adversarial pictures, which are searched where the notebook runs."""
    nb.vlm.check_sees_images()
    n, n_test = p["n"], p["n_test"]
    _, levels, samples = nb.compared(n)
    plain, edited = nb.sweep_trials(levels, samples, p["alphas"])
    yield plain + edited
    swept = nb.strengths(p["alphas"], n)
    assert swept.vectors is not None
    alpha = swept.chosen["CMRM dataset"]
    sets = ask.anchor_sets(nb, sizes=p["sizes"], draws=p["draws"])
    yield [
        *ask.anchor_trials(nb, sets, alpha, p["doses"], p["n_sets"]),
        *ask.family_trials(nb, sets, alpha, p["n_sets"]),
        *(
            trial
            for asked in abilities.beyond_trials(nb, swept, n_test).values()
            for trial in asked
        ),
        *abilities.extended_trials(nb, swept, n_test),
        *pictures.perturbed_trials(nb, swept, n_test),
        *gating.gate_trials(nb, swept.vectors, "validation", n, p["gate_alphas"]).trials,
    ]
    _, chosen = gating.gate_curves(nb, swept, p["gate_alphas"], n)
    yield gating.gate_trials(nb, swept.vectors, "test", n_test, chosen).trials


EXPERIMENTS: dict[str, Callable[[Notebook, Mapping[str, Any]], Lists]] = {
    "01": representation_gap,
    "02": vector_extraction,
    "03": cmrm_intervention,
    "04": evaluation,
    "05": utility,
    "06": defence_comparison,
    "07": ablation,
    "08": open_questions,
}
"""By notebook: lists of trials in the order in which they can be made, given the notebook's
parameters. A list may need the responses to those before it."""
