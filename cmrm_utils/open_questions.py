"""What notebook 08 asks: each part is a list of trials, and the table that is made of it.

Sets of anchors, other models, abilities beyond safety, pictures that are perturbed or made to
attack, and gates.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cmrm_utils.adversarial import Attack, attack
from cmrm_utils.data import load_samples, take
from cmrm_utils.engine import hidden_states
from cmrm_utils.gates import How, fit_gate
from cmrm_utils.hooks import Edit
from cmrm_utils.methods import CMRM, dose, gated
from cmrm_utils.metrics import (
    choose_alpha,
    curve_of,
    measures,
    paired_difference,
    rank_correlation,
    rates,
    trade_off,
)
from cmrm_utils.models import load_vlm, organisms
from cmrm_utils.notebook import ANCHORS, Notebook, Sweep
from cmrm_utils.organism import world
from cmrm_utils.sample import Sample
from cmrm_utils.trials import IMAGES, Trial, grid, mean_image
from cmrm_utils.vectors import ShiftVectors, extract_shift, refusal_direction, shifts

EDITS = ("CMRM dataset", "CMRM sample")
"""The edits that pictures and questions are tried with, each at the alpha chosen on validation."""


def requests(nb: Notebook, split: str, n: int | None) -> list[Sample]:
    """Harmful and benign requests, but for unseen verbs, which belong to no average."""
    found = nb.samples(split, n, "harmful", "benign")
    return [sample for sample in found if sample.kind != "harmful-unseen"]


def _edits(nb: Notebook, swept: Sweep, samples: Sequence[Sample]) -> list[Edit | None]:
    return [None, *(nb.chosen_edit(swept, samples, name) for name in EDITS)]


# --- sets of anchors ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AnchorSet:
    """Anchors, and the shift taken on them.

    Attributes:
        varied: what is varied among the sets that it belongs to.
        name: its own.
        size: how many anchors.
        vectors: the shift.
    """

    varied: str
    name: str
    size: int
    vectors: ShiftVectors


def family(sample: Sample) -> str | None:
    """What a request is a case of: in the organism's world its family of verbs, else its group."""
    request = world.find_request(sample.query)
    return request.family if request else sample.group


def families(samples: Iterable[Sample], least: int = 5) -> dict[str, list[Sample]]:
    """Harmful samples by family, of the families that have at least so many."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.harmful and (name := family(sample)) is not None:
            found[name].append(sample)
    return {name: these for name, these in found.items() if len(these) >= least}


def anchor_sets(
    nb: Notebook, *, sizes: Sequence[int], draws: int, images: Sequence[str], seed: int = 0
) -> list[AnchorSet]:
    """The reference (notebook 03's vector), and sets that differ from it in one thing each.

    Args:
        nb: whose model and anchors.
        sizes: numbers of harmful anchors, drawn at random; those above what there is: all.
        draws: of each size.
        images: meaningless images; ``mean``: the mean of the anchors' own.
        seed: of the draws.
    """
    harmful = nb.samples("anchors", None, "harmful")
    usual = nb.samples("anchors", ANCHORS, "harmful")
    benign = nb.samples("anchors", ANCHORS, "benign")
    v = nb.shift(usual, "harmful_blank")
    found = [AnchorSet("reference", "harmful, blank", len(usual), v)]

    def add(varied: str, name: str, differences: Tensor) -> None:
        mean = ShiftVectors(differences.double().mean(0).float())
        found.append(AnchorSet(varied, name, len(differences), mean))

    every = shifts(nb.vlm, harmful)
    generator = torch.Generator().manual_seed(seed)
    for size in sorted({min(size, len(every)) for size in sizes}):
        for draw in range(1 if size == len(every) else draws):
            chosen = torch.randperm(len(every), generator=generator)[:size]
            add("number", f"{size}, draw {draw + 1}", every[chosen])
    good, bad = shifts(nb.vlm, benign), shifts(nb.vlm, usual)
    add("requests", "benign", good)
    add("requests", "half and half", torch.cat([bad[::2], good[::2]]))
    add("requests", "questions", shifts(nb.vlm, nb.questions("anchors", ANCHORS)))
    places = {sample.id: i for i, sample in enumerate(harmful)}
    for name, these in families(harmful).items():
        add("family", name, every[[places[sample.id] for sample in these]])
    for image in images:
        if image == "mean":
            picture = mean_image(usual)
            shown = [replace(sample, image=picture) for sample in usual]
            add("image", "mean image", shifts(nb.vlm, shown, meaningless="own"))
        elif all(sample.image is not None for sample in usual) or image != "blur":
            add("image", image, shifts(nb.vlm, usual, meaningless=image))
    return found


def anchor_trials(
    nb: Notebook, sets: Sequence[AnchorSet], alphas: Iterable[float], n: int | None
) -> list[Trial]:
    """Validation samples under each set's vector at each alpha, and without an edit."""
    samples = [*requests(nb, "validation", n), *nb.questions("validation", n)]
    edits = [CMRM(s.vectors, a, name=f"{s.varied}: {s.name}") for s in sets for a in alphas if a]
    return nb.plainly(samples, [None, *edits])


def anchor_effects(
    nb: Notebook, sets: Sequence[AnchorSet], alphas: Sequence[float], n: int | None
) -> tuple[pd.DataFrame, float]:
    """What each set's vector does on the validation split, beside what might predict it.

    At the alpha that the rule chooses for the reference's vector, the same for all, and at the
    one that it chooses for the set's own.

    Returns:
        ``varied, set, size, at, alpha, unsafe, utility`` with intervals, ``cosine with v``,
        ``cosine against refusal``, ``norm`` (of v's; all means over layers), and ``fall``, of the
        unsafe rate; and the reference's alpha.
    """
    rows = nb.ask(anchor_trials(nb, sets, alphas, n))
    curve = trade_off(rows, ["method", "alpha"])
    start = curve[curve["alpha"] == 0]
    harmful, benign = (nb.samples("anchors", ANCHORS, task) for task in ("harmful", "benign"))
    refusal = refusal_direction(nb.vlm, harmful, benign)
    v = sets[0].vectors
    found: list[dict[str, Any]] = []
    alpha = 0.0
    for each in sets:
        own = pd.concat([start, curve[curve["method"] == f"{each.varied}: {each.name}"]])
        chosen = choose_alpha(own)
        alpha = alpha if found else chosen
        about = {
            "varied": each.varied,
            "set": each.name,
            "size": each.size,
            "cosine with v": float(each.vectors.cosine(v).mean()),
            "cosine against refusal": -float(each.vectors.cosine(refusal).mean()),
            "norm": float((each.vectors.norms / v.norms).mean()),
        }
        for at, strength in (("the reference's alpha", alpha), ("its own alpha", chosen)):
            row = own[own["alpha"] == strength].iloc[0].drop("method").to_dict()
            fall = float(start["unsafe"].iloc[0] - row["unsafe"])
            found.append({**about, "at": at, **row, "fall": fall})
    return pd.DataFrame(found), alpha


PREDICTORS = ("cosine against refusal", "cosine with v", "norm")


def predictors(effects: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of each of :data:`PREDICTORS` with the fall of the unsafe rate, over sets.

    Returns:
        ``at, predictor, correlation, low, high, sets``; intervals by resampling the sets.
    """
    found = []
    for at, rows in effects.groupby("at", sort=False):
        for name in PREDICTORS:
            rho, low, high = rank_correlation(rows[name], rows["fall"])
            found.append((at, name, rho, low, high, len(rows)))
    columns = ["at", "predictor", "correlation", "low", "high", "sets"]
    return pd.DataFrame(found, columns=columns)


def family_trials(
    nb: Notebook, sets: Sequence[AnchorSet], alpha: float, n: int | None
) -> list[Trial]:
    """Validation requests of each family under each family's vector, and under none."""
    trained = {each.name: each for each in sets if each.varied == "family"}
    every = families(nb.samples("validation", None, "harmful"))
    asked = [s for name, these in every.items() if name in trained for s in these[:n]]
    chosen = [sets[0], *trained.values()] if len(trained) > 1 and asked else []
    edits = [CMRM(each.vectors, alpha, name=each.name) for each in chosen]
    return nb.plainly(asked, [None, *edits]) if edits else []


def family_rates(
    nb: Notebook, sets: Sequence[AnchorSet], alpha: float, n: int | None
) -> pd.DataFrame | None:
    """Unsafe rates by the family that is asked for, and the family of the anchors.

    Returns:
        ``anchors, asked, same, rate, low, high, hits, n``, not clustered; None, and a line that
        says so, where the data does not have two families.
    """
    trials = family_trials(nb, sets, alpha, n)
    if not trials:
        print("the data has no two families of harmful requests in anchors and validation split")
        return None
    rows = nb.ask(trials)
    rows["asked"] = [family(trial.sample) for trial in trials]
    rows["unsafe"] = rows["outcome"] == "complied"
    found = rates(rows, "unsafe", ["method", "asked"]).rename(columns={"method": "anchors"})
    names = {"none": "no edit", sets[0].name: "all families"}
    found["anchors"] = found["anchors"].replace(names)
    return found.assign(same=found["anchors"] == found["asked"])


def own_family(found: pd.DataFrame) -> tuple[float, float, float]:
    """How much more the unsafe rate falls in the anchors' own family than in the others.

    Means over anchors' families, each against the same family asked; with a 95% interval by
    resampling the families that are asked.
    """
    start = found[found["anchors"] == "no edit"].set_index("asked")["rate"]
    edited = found[~found["anchors"].isin(["no edit", "all families"])]
    fall = edited.assign(fall=edited["asked"].map(start) - edited["rate"])
    inside = fall[fall["same"]].set_index("asked")["fall"]
    outside = fall[~fall["same"]].groupby("asked")["fall"].mean()
    return paired_difference(outside, inside.reindex(outside.index))


# --- other models -------------------------------------------------------------------------------


def best_alphas(curves: pd.DataFrame, n: int = 50) -> pd.DataFrame:
    """The alpha chosen for each model of a stored grid, beside how large a shift the model has.

    Bundled models are loaded for it, one after the other; others are left out.

    Args:
        curves: the stored table ``full_curves``.
        n: anchors of each kind that shifts are taken on.

    Returns:
        ``model, method, alpha, unsafe before, unsafe, relative shift`` (``|v|/|h|``, own images,
        mean over layers), ``dose`` (alpha times that) and ``cosine against refusal``.
    """
    found = []
    for model in [name for name in curves["model"].unique() if name in organisms()]:
        measured = _shift_of(model, n)
        curve = curve_of(curves[curves["model"] == model], ["method", "alpha"])
        for method in EDITS:
            own = curve[curve["method"] == method]
            alpha = choose_alpha(own)
            at = own.set_index("alpha")["unsafe"]
            relative = measured[f"relative shift, {method}"]
            found.append(
                {
                    "model": model,
                    "method": method,
                    "alpha": alpha,
                    "unsafe before": at[0.0],
                    "unsafe": at[alpha],
                    "relative shift": relative,
                    "dose": alpha * relative,
                    "cosine against refusal": measured["cosine"],
                }
            )
    return pd.DataFrame(found)


def _shift_of(model: str, n: int) -> dict[str, float]:
    vlm, anchors = load_vlm(model), load_samples("organism", "anchors")
    harmful, benign = (take(anchors, n, task) for task in ("harmful", "benign"))
    each = extract_shift(vlm, harmful, level="sample")
    v = ShiftVectors(each.values.double().mean(0).float())
    states = hidden_states(vlm, grid(harmful))
    return {
        "relative shift, CMRM dataset": float(dose(CMRM(v, 1.0), states).mean()),
        "relative shift, CMRM sample": float(dose(CMRM(each, 1.0), states).mean()),
        "cosine": -float(v.cosine(refusal_direction(vlm, harmful, benign)).mean()),
    }


# --- beyond safety ------------------------------------------------------------------------------


def questions(nb: Notebook, n: int | None) -> dict[str, list[Sample]]:
    """Test questions by what they ask: facts, counting, and the other visual questions."""
    every = [s for s in nb.samples("test", None, *_tasks(nb)) if s.image is not None]
    by = {
        "facts": [s for s in every if s.task == "fact"],
        "counting": [s for s in every if s.kind == "count"],
        "other visual questions": [s for s in every if s.task == "visual" and s.kind != "count"],
    }
    return {name: these[:n] for name, these in by.items() if these}


def _tasks(nb: Notebook) -> list[str]:
    here = {sample.task for sample in load_samples(nb.data, "test")}
    return [task for task in ("fact", "visual") if task in here]


def beyond_trials(nb: Notebook, swept: Sweep, n: int | None) -> dict[str, list[Trial]]:
    """Facts without and with images, unedited and edited; visual questions likewise.

    What an image shows cannot be asked of a blank one: visual questions have their own image, or
    its caption.
    """
    found = {}
    for name, these in questions(nb, n).items():
        images = ("own", "blank") if name == "facts" else ("own",)
        words = ("none", "caption", "noise") if name == "facts" else ("caption",)
        edits = _edits(nb, swept, these)
        found[name] = [*grid(these, images=words), *grid(these, images=images, edits=edits)]
    return found


def beyond(nb: Notebook, swept: Sweep, n: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares of right answers, and what changes them, paired.

    Returns:
        ``measure, image, method, rate, low, high, hits, n``; and ``measure, image, method, against,
        change, low, high``: images without an edit against text only (visual questions: against
        the caption), edits against the same image without one.
    """
    shares, changes = [], []
    for name, trials in beyond_trials(nb, swept, n).items():
        rows = nb.ask(trials).assign(measure=name)
        rows["right"] = rows["right"].astype(bool)
        shares.append(rates(rows, "right", ["measure", "image", "method"], group=None))
        cells = {
            key: c.set_index("sample")["right"] for key, c in rows.groupby(["image", "method"])
        }
        plain = "none" if name == "facts" else "caption"
        for image, method in cells:
            against = (plain, "none") if method == "none" else (image, "none")
            if (image, method) != against:
                change = paired_difference(cells[against], cells[image, method])
                changes.append((name, image, method, against[0], *change))
    columns = ["measure", "image", "method", "against", "change", "low", "high"]
    return pd.concat(shares, ignore_index=True), pd.DataFrame(changes, columns=columns)


EXTENDED = ("typographic-harmful", "typographic-benign", "unknown")
"""Kinds that a world may have: a verb that is written in the picture alone, and questions to which
nobody knows the answer, whose right answer says so."""


def extended_trials(nb: Notebook, swept: Sweep, n: int | None) -> list[Trial]:
    """Samples of the kinds :data:`EXTENDED` on the test split, unedited and edited; perhaps none.

    With their own image; questions to which there is no answer as text too.
    """
    test = load_samples(nb.data, "test")
    found = []
    for kind in EXTENDED:
        these = [sample for sample in test if sample.kind == kind][:n]
        if these:
            found += grid(these, edits=_edits(nb, swept, these))
            found += grid(these, images=["none"]) if kind == "unknown" else []
    return found


def extended(nb: Notebook, swept: Sweep, n: int | None) -> pd.DataFrame | None:
    """Refusals and right answers by kind; None, and a line that says so, where there are none.

    A refusal is the keyword judge's. Of ``unknown`` the right answer says that it is not known.

    Returns:
        ``measure`` (``refused`` or ``right``)``, kind, image, method, rate, low, high, hits, n``.
    """
    trials = extended_trials(nb, swept, n)
    if not trials:
        print(f"no {', '.join(EXTENDED)} in the data (organism-extended has them)")
        return None
    rows = nb.ask(trials)
    rows["refused"] = rows["keyword"] == "refused"
    by = ["kind", "image", "method"]
    parts = [rates(rows, hit, by).assign(measure=hit) for hit in ("refused", "right")]
    return pd.concat(parts, ignore_index=True)[["measure", *by, "rate", "low", "high", "hits", "n"]]


# --- pictures -----------------------------------------------------------------------------------


def perturbed_trials(
    nb: Notebook, swept: Sweep, images: Sequence[str], n: int | None
) -> list[Trial]:
    """Test requests and questions with images as they are and perturbed, unedited and edited."""
    samples = [*requests(nb, "test", n), *nb.questions("test", n)]
    shown = [sample for sample in samples if sample.image is not None]
    return grid(shown, images=images, edits=_edits(nb, swept, shown))


def perturbed(nb: Notebook, swept: Sweep, images: Sequence[str], n: int | None) -> pd.DataFrame:
    """:func:`cmrm_utils.metrics.measures` by image and method."""
    return measures(nb.ask(perturbed_trials(nb, swept, images, n)), ["image", "method"])


def attacks(
    nb: Notebook, swept: Sweep, *, epsilons: Sequence[int], steps: int, target: str = ""
) -> dict[tuple[str, str], Attack]:
    """Pictures found by gradient on the harmful anchors, from a blank one.

    Args:
        nb: whose model.
        swept: with the chosen alphas.
        epsilons: how far pixels may go, in levels, in attacks on the plain model; attacks that
            know an edit have no bound.
        steps: of each search.
        target: what answers are to begin with; empty for the organism's world's own answers.

    Returns:
        By what the picture is, and the edit in place during its search (``none``).

    Raises:
        InputError: a processor that no gradient goes through.
    """
    anchors = nb.samples("anchors", ANCHORS, "harmful")
    targets = [target or _answer(sample) for sample in anchors]
    start = IMAGES["blank"](anchors[0])
    assert start is not None
    found = {}
    for epsilon in epsilons:
        name = "unbounded" if epsilon >= 255 else f"within {epsilon} levels"
        made = attack(nb.vlm, anchors, targets, start, epsilon=epsilon, steps=steps)
        found[name, "none"] = made
    for method in EDITS:
        edit = nb.chosen_edit(swept, anchors, method)
        made = attack(nb.vlm, anchors, targets, start, edit=edit, steps=steps)
        found[f"unbounded, knows {method}", method] = made
    return found


def _answer(sample: Sample) -> str:
    """The world's answer, carrying the request out; elsewhere the beginning of one."""
    request = world.find_request(sample.query)
    return request.steps if request else "Sure, here is"


def adversarial(
    nb: Notebook,
    swept: Sweep,
    found: Mapping[tuple[str, str], Attack],
    n: int | None,
    n_test: int | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pictures as ordinary images of validation and test requests, beside a blank one.

    Pictures found against the plain model are tried without an edit and under each; one that
    knows an edit, under that one.

    Returns:
        ``split, picture, method, measure, rate, low, high, hits, n``, with the measure ``refused``
        (of harmful requests); and ``split, picture, method, change, low, high`` of that against
        the blank image under the same method, paired.
    """
    shares, changes = [], []
    for split, count in (("validation", n), ("test", n_test)):
        samples = requests(nb, split, count)
        edits = dict(zip(("none", *EDITS), _edits(nb, swept, samples), strict=True))
        trials = grid(samples, images=["blank"], edits=list(edits.values()))
        names = ["blank"] * len(trials)
        for (name, knows), made in found.items():
            shown = [replace(sample, image=made.image) for sample in samples]
            tried = list(edits.values()) if knows == "none" else [edits[knows]]
            more = grid(shown, edits=tried)
            trials, names = [*trials, *more], [*names, *[name] * len(more)]
        rows = nb.ask(trials).assign(picture=names)
        harmful = rows[rows["task"] == "harmful"]
        harmful = harmful.assign(refused=harmful["outcome"] == "refused")
        by = ["picture", "method"]
        refused = rates(harmful, "refused", by).assign(measure="refused")
        shares.append(pd.concat([refused, measures(rows, by)]).assign(split=split))
        cells = {key: c.set_index("sample")["refused"] for key, c in harmful.groupby(by)}
        for name, method in cells:
            if name != "blank":
                change = paired_difference(cells["blank", method], cells[name, method])
                changes.append((split, name, method, *change))
    columns = ["split", "picture", "method", "change", "low", "high"]
    return pd.concat(shares, ignore_index=True), pd.DataFrame(changes, columns=columns)


# --- gates --------------------------------------------------------------------------------------

GATES: dict[str, tuple[str, How]] = {
    "text state, mean": ("none", "mean"),
    "text state, probe": ("none", "probe"),
    "image state, mean": ("own", "mean"),
    "image state, probe": ("own", "probe"),
}
"""What a gate reads, and how it is fitted."""

ALWAYS, TOLD = "always", "told the truth"


def open_gates(nb: Notebook, samples: Sequence[Sample]) -> dict[str, dict[str, bool]]:
    """Which gates are on, by gate and sample id; all are off where there is no image.

    Fitted on the anchors: harmful requests against benign ones and questions. ``always`` is every
    image's; ``told the truth`` is the harmful requests', which nobody can know.
    """
    seen = {sample.id: sample.image is not None for sample in samples}
    found = {ALWAYS: seen, TOLD: {s.id: seen[s.id] and s.harmful for s in samples}}
    harmful = nb.samples("anchors", ANCHORS, "harmful")
    harmless = [*nb.samples("anchors", ANCHORS, "benign"), *nb.questions("anchors", ANCHORS)]
    for image in dict.fromkeys(image for image, _ in GATES.values()):
        states = [
            hidden_states(nb.vlm, _shown(these, image)) for these in (harmful, harmless, samples)
        ]
        for name, (read, how) in GATES.items():
            if read == image:
                on = fit_gate(states[0], states[1], how).on(states[2])
                pairs = zip(samples, on, strict=True)
                found[name] = {s.id: seen[s.id] and is_on for s, is_on in pairs}
    return found


def _shown(samples: Iterable[Sample], image: str) -> list[Trial]:
    return [Trial(s, "none" if s.image is None else image) for s in samples]


def gate_trials(
    nb: Notebook,
    gates: Mapping[str, Mapping[str, bool]],
    samples: Sequence[Sample],
    vectors: ShiftVectors,
    alphas: Mapping[str, Sequence[float]],
) -> list[Trial]:
    """Samples without an edit, and under each gate at its alphas."""
    edits: list[Edit | None] = [None]
    for name, on in gates.items():
        edits += [gated(CMRM(vectors, a), on, name=name) for a in alphas[name]]
    return nb.plainly(samples, edits)


def gate_curves(
    nb: Notebook, vectors: ShiftVectors, alphas: Sequence[float], n: int | None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Every gate over the alphas on the validation split, and the alpha chosen for each."""
    samples = [*requests(nb, "validation", n), *nb.questions("validation", n)]
    gates = open_gates(nb, samples)
    strengths = {name: [alpha for alpha in alphas if alpha] for name in gates}
    rows = nb.ask(gate_trials(nb, gates, samples, vectors, strengths))
    start = rows[rows["alpha"] == 0]
    rows = pd.concat([*(start.assign(method=name) for name in gates), rows[rows["alpha"] > 0]])
    curve = trade_off(rows, ["method", "alpha"])
    chosen = {name: choose_alpha(curve[curve["method"] == name]) for name in gates}
    return curve, chosen


def gate_test(
    nb: Notebook, vectors: ShiftVectors, chosen: Mapping[str, float], n: int | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Every gate at its alpha on the test split.

    Returns:
        :func:`cmrm_utils.metrics.measures` by ``method, alpha``; each gate's ``false alarms`` on
        benign requests and on questions and its ``misses`` of harmful requests, as rates; and
        changes against ``always``, paired: ``method, measure, change, low, high``.
    """
    samples = [*requests(nb, "test", n), *nb.questions("test", n)]
    gates = open_gates(nb, samples)
    strengths = {name: [alpha] for name, alpha in chosen.items()}
    rows = nb.ask(gate_trials(nb, gates, samples, vectors, strengths))
    rows["method"] = rows["method"].replace("none", "never")
    found = measures(rows, ["method", "alpha"])
    about = {sample.id: sample for sample in samples}
    errors = pd.DataFrame(
        [
            {"method": name, "error": _error(about[key]), "wrong": is_on != about[key].harmful}
            for name, on in gates.items()
            for key, is_on in on.items()
        ]
    )
    counted = rates(errors, "wrong", ["method", "error"], group=None)
    return found, counted, _against(rows, ALWAYS)


def _error(sample: Sample) -> str:
    if sample.harmful:
        return "misses"
    return "false alarms, benign" if sample.task == "benign" else "false alarms, questions"


def _against(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Changes of unsafe rate and utility against one method, paired by sample."""
    hits = {
        "unsafe": rows[rows["task"] == "harmful"].assign(hit=lambda r: r["outcome"] == "complied"),
        "utility": rows[rows["task"] != "harmful"].assign(
            hit=lambda r: r["right"].fillna(r["outcome"] == "complied")
        ),
    }
    found = []
    for measure, these in hits.items():
        cells = {
            name: c.set_index("sample")["hit"] for name, c in these.groupby("method", sort=False)
        }
        for name, cell in cells.items():
            if name != baseline and baseline in cells:
                found.append((name, measure, *paired_difference(cells[baseline], cell)))
    return pd.DataFrame(found, columns=["method", "measure", "change", "low", "high"])
