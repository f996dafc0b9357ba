"""What notebook 08 asks: each part is a list of trials, and the table that is made of it.

Sets of anchors, abilities beyond safety, pictures that are perturbed or made to attack, and gates.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cmrm_utils.adversarial import Attack, attack
from cmrm_utils.conditions import IMAGES, OF_OWN, mean_image
from cmrm_utils.data.load import load_samples
from cmrm_utils.edits import Edit
from cmrm_utils.engine.loops import hidden_states
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.methods.gate import How, fit_gate, gated
from cmrm_utils.notebook import ANCHORS, Notebook, Strengths
from cmrm_utils.organism import world
from cmrm_utils.results.intervals import paired_difference, rank_correlation
from cmrm_utils.results.rates import (
    UNSEEN,
    choose_alpha,
    measures,
    paired_changes,
    rates,
    trade_off,
)
from cmrm_utils.sample import Sample
from cmrm_utils.trials import Trial, grid
from cmrm_utils.vectors import ShiftVectors, refusal_direction, shifts

EDITS = ("CMRM dataset", "CMRM sample")
"""The edits that pictures and questions are tried with, each at the alpha chosen on validation."""


def requests(nb: Notebook, split: str, n: int | None) -> list[Sample]:
    """Harmful and benign requests, but for unseen and written verbs, which are looked at apart."""
    found = nb.samples(split, n, "harmful", "benign")
    return [sample for sample in found if sample.kind not in (UNSEEN, *EXTENDED)]


def _edits(nb: Notebook, swept: Strengths, samples: Sequence[Sample]) -> list[Edit | None]:
    return [None, *(nb.chosen_edit(swept, samples, name) for name in EDITS)]


# --- sets of anchors ----------------------------------------------------------------------------

ALL = "all families"

MEANINGLESS = ("black", "white", "noise", "blur", "mean")
"""Images that sets of anchors are taken with beside the blank one; ``mean``: of their own."""


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
    request = _world_request(sample)
    return request.family if request else sample.group


def _world_request(sample: Sample) -> world.Request | None:
    """What a sample of the organism's world asks for; None for any other sample."""
    return world.find_request(sample.request or sample.query) if sample.world else None


def families(samples: Iterable[Sample], least: int = 5) -> dict[str, list[Sample]]:
    """Harmful samples by family, of the families that have at least so many."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.harmful and (name := family(sample)) is not None:
            found[name].append(sample)
    return {name: these for name, these in found.items() if len(these) >= least}


def anchor_sets(
    nb: Notebook, *, sizes: Sequence[int], draws: int, seed: int = 0
) -> list[AnchorSet]:
    """The reference (notebook 03's vector), and sets that differ from it in one thing each.

    Args:
        nb: whose model and anchors.
        sizes: numbers of harmful anchors, drawn at random; those above what there is: all.
        draws: of each size.
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
    if asked := nb.questions("anchors", ANCHORS):
        add("requests", "questions", shifts(nb.vlm, asked))
    places = {sample.id: i for i, sample in enumerate(harmful)}
    for name, these in families(harmful).items():
        add("family", name, every[[places[sample.id] for sample in these]])
    seen = [sample for sample in usual if sample.image is not None]
    for image in MEANINGLESS:
        if image == "mean" and seen:
            picture = mean_image(seen)
            shown = [replace(sample, image=picture) for sample in usual]
            add("image", "mean image", shifts(nb.vlm, shown, meaningless="own"))
        elif image not in ("blur", "mean") or len(seen) == len(usual):
            add("image", image, shifts(nb.vlm, usual, meaningless=image))
    return found


def relative_norm(each: AnchorSet, v: ShiftVectors) -> float:
    """How long a set's vectors are beside v's, mean over layers."""
    return float((each.vectors.norms / v.norms).mean())


def anchor_trials(
    nb: Notebook,
    sets: Sequence[AnchorSet],
    alpha: float,
    doses: Sequence[float],
    n: int | None,
) -> list[Trial]:
    """Validation samples without an edit, and under each set's vector: see :func:`anchor_effects`.

    The edits are named by the set, and their alpha is the dose; at ``alpha`` as it is, by the set
    and ``as taken``.
    """
    samples = [*requests(nb, "validation", n), *nb.questions("validation", n)]
    edits: list[Edit | None] = [None]
    for each in sets:
        name = f"{each.varied}: {each.name}"
        edits.append(CMRM(each.vectors, alpha, name=f"{name}, as taken"))
        as_long = each.vectors.scaled_like(sets[0].vectors)
        strengths = sorted({alpha, *doses} - {0.0})
        edits += [CMRM(as_long, strength, name=name) for strength in strengths]
    return nb.plainly(samples, edits)


AT = ("the reference's alpha", "the reference's dose", "its own dose")
"""Strengths that a set's vector is tried at: see :func:`anchor_effects`."""


def anchor_effects(
    nb: Notebook, sets: Sequence[AnchorSet], alpha: float, doses: Sequence[float], n: int | None
) -> pd.DataFrame:
    """What each set's vector does on the validation split, beside what might predict it.

    Vectors of different sets are of different lengths. So each is tried at the alpha of the
    reference's vector v, which says what a user would get; as long as alpha times v in every layer,
    which compares directions; and, with v's lengths again, at the alpha that the rule chooses for
    it, its dose.

    Args:
        nb: whose model.
        sets: the reference first.
        alpha: chosen for the reference.
        doses: to choose from; ``alpha`` is added.
        n: validation samples of each kind.

    Returns:
        ``varied, set, size, at, dose, refused, utility`` with intervals, ``rise`` (of the share
        refused), and :data:`PREDICTORS`, means over layers.
    """
    rows = nb.ask(anchor_trials(nb, sets, alpha, doses, n))
    by = ["method", "alpha"]
    curve, measured = trade_off(rows, by), measures(rows, by)
    start = curve[curve["method"] == "none"].assign(alpha=0.0)
    harmful, benign = (nb.samples("anchors", ANCHORS, task) for task in ("harmful", "benign"))
    refusal = refusal_direction(nb.vlm, harmful, benign)
    v = sets[0].vectors
    found: list[dict[str, Any]] = []
    for each in sets:
        name = f"{each.varied}: {each.name}"
        own = pd.concat([start, curve[curve["method"] == name]])
        best = choose_alpha(measured[measured["method"].isin(["none", name])])
        taken = curve[curve["method"] == f"{name}, as taken"]
        about = {
            "varied": each.varied,
            "set": each.name,
            "size": each.size,
            "cosine against refusal": -float(each.vectors.cosine(refusal).mean()),
            "cosine with v": float(each.vectors.cosine(v).mean()),
            "norm": relative_norm(each, v),
        }
        shown = (
            taken if alpha else start,
            own[own["alpha"] == alpha],
            own[own["alpha"] == best],
        )
        for at, these in zip(AT, shown, strict=True):
            row = these.iloc[0].drop("method").rename({"alpha": "dose"}).to_dict()
            rise = float(row["refused"] - start["refused"].iloc[0])
            found.append({**about, "at": at, **row, "rise": rise})
    return pd.DataFrame(found)


PREDICTORS = ("cosine against refusal", "cosine with v", "norm")


def predictors(effects: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of each of :data:`PREDICTORS` with the rise of the share refused, over sets.

    Args:
        effects: of :func:`anchor_effects`.

    Returns:
        ``at, predictor, correlation, low, high, sets``; intervals by resampling the sets.
    """
    found = []
    for at, rows in effects.groupby("at", sort=False):
        for name in PREDICTORS:
            rho, low, high = rank_correlation(rows[name], rows["rise"])
            found.append((at, name, rho, low, high, len(rows)))
    columns = ["at", "predictor", "correlation", "low", "high", "sets"]
    return pd.DataFrame(found, columns=columns)


def family_trials(
    nb: Notebook, sets: Sequence[AnchorSet], alpha: float, n: int | None
) -> list[Trial]:
    """Validation requests of each family under each family's vector at v's dose, and under none."""
    trained = {each.name: each for each in sets if each.varied == "family"}
    every = families(nb.samples("validation", None, "harmful"))
    asked = [s for name, these in every.items() if name in trained for s in these[:n]]
    edits = [
        CMRM(each.vectors.scaled_like(sets[0].vectors), alpha, name=each.name)
        for each in (replace(sets[0], name=ALL), *trained.values())
    ]
    return nb.plainly(asked, [None, *edits]) if len(trained) > 1 else []


def family_rows(
    nb: Notebook, sets: Sequence[AnchorSet], alpha: float, n: int | None
) -> pd.DataFrame | None:
    """Requests judged, by the family that is asked for and the family of the anchors.

    Returns:
        One row a trial, with ``anchors, asked, refused``; None, and a line that says so, where the
        data does not have two families.
    """
    trials = family_trials(nb, sets, alpha, n)
    if not trials:
        print("the data has no two families of harmful requests in anchors and validation split")
        return None
    rows = nb.ask(trials)
    rows["asked"] = [family(trial.sample) for trial in trials]
    rows["anchors"] = rows["method"].replace("none", "no edit")
    return rows.assign(refused=rows["outcome"] == "refused")


def own_family(rows: pd.DataFrame) -> tuple[float, float, float] | None:
    """How much less is refused under other families' anchors than under the request's own.

    Over the requests that are not refused without an edit; the mean over the other families is
    taken for each, and the interval is of resampled verbs. None where all is refused without one.

    Args:
        rows: of :func:`family_rows`.
    """
    wide = rows.pivot(index="sample", columns="anchors", values="refused").astype(float)
    about = rows.groupby("sample")[["asked", "group", "kind"]].first().reindex(wide.index)
    others = wide.drop(columns=["no edit", ALL])
    inside = pd.Series({name: others.loc[name, about.loc[name, "asked"]] for name in wide.index})
    outside = (others.sum(axis=1) - inside) / (others.shape[1] - 1)
    lost = wide["no edit"] == 0
    if not lost.any():
        return None
    return paired_difference(
        outside[lost], inside[lost], groups=about["group"], strata=about["kind"]
    )


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


def beyond_trials(nb: Notebook, swept: Strengths, n: int | None) -> dict[str, list[Trial]]:
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


def beyond(nb: Notebook, swept: Strengths, n: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
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
    whole = pd.concat(shares, ignore_index=True) if shares else pd.DataFrame(columns=columns[:3])
    return whole, pd.DataFrame(changes, columns=columns)


EXTENDED = ("harmful-written", "benign-written", "reading", "maker", "unknown")
"""Kinds that a world may have: requests whose verb is written in the picture alone, reading it,
and questions of which the last are those that nobody can answer."""

AS_TEXT = ("maker", "unknown")
"""Those that can be asked without their picture too."""


def extended_trials(nb: Notebook, swept: Strengths, n: int | None) -> list[Trial]:
    """Samples of the kinds :data:`EXTENDED` on the test split, unedited and edited; perhaps none.

    With their own image; those of :data:`AS_TEXT` as text too.
    """
    test = load_samples(nb.data, "test")
    found = []
    for kind in EXTENDED:
        these = [sample for sample in test if sample.kind == kind][:n]
        if these:
            found += grid(these, images=["none"]) if kind in AS_TEXT else []
            found += grid(these, edits=_edits(nb, swept, these))
    return found


def extended(nb: Notebook, swept: Strengths, n: int | None) -> pd.DataFrame | None:
    """:func:`cmrm_utils.results.rates.measures` by kind, image and method of :data:`EXTENDED`.

    None, and a line that says so, where the data has none.
    """
    trials = extended_trials(nb, swept, n)
    if not trials:
        print(
            "no verbs written in pictures in the data, and nothing unknown: organism-extended has"
        )
        return None
    return measures(nb.ask(trials), ["kind", "image", "method"])


# --- pictures -----------------------------------------------------------------------------------


SHOWN = OF_OWN
"""The own image as it is, and perturbed."""


def perturbed_trials(nb: Notebook, swept: Strengths, n: int | None) -> list[Trial]:
    """Test requests and questions with their own images and perturbed, unedited and edited."""
    samples = [*requests(nb, "test", n), *nb.questions("test", n)]
    shown = [sample for sample in samples if sample.image is not None]
    return grid(shown, images=SHOWN, edits=_edits(nb, swept, shown))


def perturbed(nb: Notebook, swept: Strengths, n: int | None) -> pd.DataFrame:
    """:func:`cmrm_utils.results.rates.measures` by image and method."""
    return measures(nb.ask(perturbed_trials(nb, swept, n)), ["image", "method"])


def attacks(
    nb: Notebook, swept: Strengths, *, epsilons: Sequence[int], steps: int, target: str = ""
) -> dict[tuple[str, str], Attack]:
    """Pictures found by gradient on the harmful anchors, from a blank one.

    Args:
        nb: whose model.
        swept: with the chosen alphas.
        epsilons: how far pixels may go, in levels, in attacks on the plain model; attacks that
            know an edit have no bound.
        steps: of each search.
        target: what answers are to begin with; empty for the beginnings of the world's own answers.

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
    """How an answer that carries the request out begins, as far as the request determines it."""
    request = _world_request(sample)
    return request.steps.partition(", first")[0] + ", first" if request else "Sure, here is"


def adversarial(
    nb: Notebook,
    swept: Strengths,
    found: Mapping[tuple[str, str], Attack],
    n: int | None,
    n_test: int | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pictures as ordinary images of validation and test requests, beside a blank one.

    Pictures found against the plain model are tried without an edit and under each; one that
    knows an edit, under that one.

    Returns:
        ``split, picture, method, measure, rate, low, high, hits, n``; and ``split, picture, method,
        knows, change, low, high`` of the share refused against the blank image under the same
        method, paired; ``knows``: made against the edit.
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
        shares.append(measures(rows, by).assign(split=split))
        cells = {key: c.set_index("sample")["refused"] for key, c in harmful.groupby(by)}
        about = harmful.groupby("sample")[["group", "kind"]].first()
        for name, method in cells:
            if name != "blank":
                before, after = cells["blank", method], cells[name, method]
                like = {"groups": about["group"], "strata": about["kind"]}
                change = paired_difference(before, after, **like)
                changes.append((split, name, method, (name, "none") not in found, *change))
    columns = ["split", "picture", "method", "knows", "change", "low", "high"]
    return pd.concat(shares, ignore_index=True), pd.DataFrame(changes, columns=columns)


def outcome_shares(found: pd.DataFrame) -> pd.DataFrame:
    """Shares of the three outcomes by ``setting``, picture and method, for a bar each.

    Args:
        found: one split of :func:`adversarial`'s first table.
    """
    wide = found.pivot(index=["picture", "method"], columns="measure", values="rate")
    refused = found[found["measure"] == "refused"].set_index(["picture", "method"])
    wide = wide.loc[refused.index].assign(complied=wide["unsafe"]).join(refused[["low", "high"]])
    names = [f"{p}; {'no edit' if m == 'none' else m}" for p, m in wide.index]
    columns = ["refused", "complied", "neither", "low", "high"]
    return wide[columns].reset_index(drop=True).assign(setting=names)


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


@dataclass(frozen=True, eq=False)
class Gated:
    """Samples, which gates are on for them, and the trials under each gate.

    Attributes:
        samples: requests and questions of a split.
        gates: by gate and sample id, whether it is on.
        trials: without an edit, and under each gate at each of its alphas.
    """

    samples: list[Sample]
    gates: dict[str, dict[str, bool]]
    trials: list[Trial]


def gate_trials(
    nb: Notebook,
    vectors: ShiftVectors,
    split: str,
    n: int | None,
    alphas: Sequence[float] | Mapping[str, float],
) -> Gated:
    """Every gate over dataset-level CMRM.

    Args:
        nb: whose model and data.
        vectors: the shift.
        split: whose samples.
        n: samples of each kind.
        alphas: strengths for all gates, 0 left out; or each gate's own.
    """
    samples = [*requests(nb, split, n), *nb.questions(split, n)]
    gates = open_gates(nb, samples)
    edits: list[Edit | None] = [None]
    for name, on in gates.items():
        own = [alphas[name]] if isinstance(alphas, Mapping) else [a for a in alphas if a]
        edits += [gated(CMRM(vectors, alpha), on, name=name) for alpha in own]
    return Gated(samples, gates, nb.plainly(samples, edits))


def gate_curves(
    nb: Notebook, swept: Strengths, alphas: Sequence[float], n: int | None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Every gate over the alphas on the validation split, and the alpha chosen for each.

    Args:
        nb: whose model and data.
        swept: with the shift, and the alpha of the edit that is always on.
        alphas: strengths for the gates.
        n: samples of each kind.
    """
    vectors = swept.vectors
    assert vectors is not None
    made = gate_trials(nb, vectors, "validation", n, alphas)

    def judged() -> pd.DataFrame:
        rows = nb.ask(made.trials)
        plain = rows["method"] == "none"
        starts = [rows[plain].assign(method=name) for name in made.gates]
        return pd.concat([*starts, rows[~plain]])

    own = [name for name in made.gates if name != ALWAYS]
    choices = nb.choose_alphas(own, alphas, made.samples, judged, study="gate:")
    chosen = {ALWAYS: swept.chosen["CMRM dataset"]}
    chosen |= {name: choice.alpha for name, choice in choices.items()}
    return trade_off(judged(), ["method", "alpha"]), chosen


def gate_test(
    nb: Notebook, vectors: ShiftVectors, chosen: Mapping[str, float], n: int | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Every gate at its alpha on the test split, and ``never`` an edit.

    Returns:
        :func:`cmrm_utils.results.rates.measures` by ``method, alpha``; each gate's ``false alarms`` on
        benign requests and on questions and its ``misses`` of harmful requests, as rates; and
        :func:`cmrm_utils.results.rates.paired_changes` against ``always``.
    """
    made = gate_trials(nb, vectors, "test", n, chosen)
    rows = nb.ask(made.trials)
    rows["method"] = rows["method"].replace("none", "never")
    about = {sample.id: sample for sample in made.samples}
    errors = pd.DataFrame(
        [
            {
                "method": name,
                "error": _error(about[key]),
                "wrong": is_on != about[key].harmful,
                "group": about[key].group or key,
                "kind": about[key].kind,
            }
            for name, on in made.gates.items()
            for key, is_on in on.items()
        ]
    )
    counted = rates(errors, "wrong", ["method", "error"])
    return measures(rows, ["method", "alpha"]), counted, paired_changes(rows, "method", ALWAYS)


def _error(sample: Sample) -> str:
    if sample.harmful:
        return "misses"
    return "false alarms, benign" if sample.task == "benign" else "false alarms, questions"
