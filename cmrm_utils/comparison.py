"""Defences side by side, and what the shift vector is made of: the work of notebook 06.

A defence is one entry of :data:`DEFENCES`: what it must know of the samples beforehand, and the
settings it is tried in. Sweeping, choosing, testing and timing are the same for all.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from cmrm_utils.data import Sample
from cmrm_utils.engine import generate, hidden_states
from cmrm_utils.errors import InputError
from cmrm_utils.hooks import Edit
from cmrm_utils.judges import judge
from cmrm_utils.methods import (
    CMRM,
    ReGap,
    ShiftDC,
    VLMGuard,
    refusal_addition,
    safety_prompt,
)
from cmrm_utils.metrics import (
    averaged,
    clustered_interval,
    measures,
    paired_difference,
    rates,
    trade_off,
)
from cmrm_utils.models import load_vlm, organisms
from cmrm_utils.notebook import ANCHORS, Notebook
from cmrm_utils.prompts import CAPTION_QUERY
from cmrm_utils.store import Run
from cmrm_utils.trials import Trial, grid, table
from cmrm_utils.vectors import (
    ShiftVectors,
    caption_shift,
    difference_directions,
    extract_shift,
    regained,
    safety_direction,
    text_mean,
    text_states,
)

Settings = Mapping[str, Any]
Make = Callable[..., list[Trial]]

NO_EDIT = "no edit"
"""The setting chosen where every one that was tried costs too much."""


@dataclass(frozen=True)
class Defence:
    """A way to make a model refuse again.

    Attributes:
        prepare: does what must be known of the samples beforehand, and gives what makes the
            trials of a setting.
        settings: those tried, from the gentlest on.
    """

    prepare: Callable[[Notebook, Sequence[Sample]], Make]
    settings: Sequence[Settings]


def _anchors(nb: Notebook) -> tuple[list[Sample], list[Sample]]:
    """Harmful and benign anchors."""
    return nb.samples("anchors", ANCHORS, "harmful"), nb.samples("anchors", ANCHORS, "benign")


def _kept(nb: Notebook, name: str) -> Path:
    """Where the run keeps vectors that are taken on :data:`ANCHORS` anchors of each kind."""
    return nb.run.folder / "vectors" / f"{name}_{ANCHORS}.safetensors"


def _drift(nb: Notebook) -> ShiftVectors:
    return nb.shift(_anchors(nb)[0], "harmful_blank")


def _refusal(nb: Notebook) -> ShiftVectors:
    """Harmful minus benign, text only."""
    safety = safety_direction(nb.vlm, *_anchors(nb), image="none", path=_kept(nb, "text_safety"))
    return safety.scaled(-1.0)


def _dataset(nb: Notebook, samples: Sequence[Sample]) -> Make:
    v = _drift(nb)
    return lambda alpha: nb.plainly(samples, [CMRM(v, alpha)])


def _incremental(nb: Notebook, samples: Sequence[Sample]) -> Make:
    u = _drift(nb).increments()
    return lambda alpha: nb.plainly(samples, [CMRM(u, alpha)])


def _sample(nb: Notebook, samples: Sequence[Sample]) -> Make:
    own = extract_shift(nb.vlm, samples, level="sample")
    return lambda alpha: nb.plainly(samples, [CMRM(own, alpha)])


def _shiftdc(nb: Notebook, samples: Sequence[Sample]) -> Make:
    told = partial(captioned, nb)
    safety = safety_direction(nb.vlm, *map(told, _anchors(nb)), path=_kept(nb, "caption_safety"))
    shift = caption_shift(nb.vlm, told(samples))
    return lambda **setting: nb.plainly(samples, [ShiftDC(shift, safety, **setting)])


def _vlm_guard(nb: Notebook, samples: Sequence[Sample]) -> Make:
    readings = text_states(nb.vlm, samples)

    def make(m: int, **setting: Any) -> list[Trial]:
        path = _kept(nb, f"differences_{m}")
        directions = difference_directions(nb.vlm, *_anchors(nb), m, path=path)
        return nb.plainly(samples, [VLMGuard(directions, readings, **setting)])

    return make


def _regap(nb: Notebook, samples: Sequence[Sample]) -> Make:
    v, r = _drift(nb), _refusal(nb)
    bad, good = (
        text_mean(nb.vlm, these, path=_kept(nb, name))
        for these, name in zip(_anchors(nb), ("harmful_text", "benign_text"), strict=True)
    )

    def make(first: float, alpha: float) -> list[Trial]:
        correction = CMRM(v, first, tokens="last")
        w = regained(nb.vlm, samples, correction, harmful=bad, benign=good)
        return nb.plainly(samples, [ReGap(v, r, w, alpha, first=first)])

    return make


def _addition(nb: Notebook, samples: Sequence[Sample]) -> Make:
    r, count = _refusal(nb), len(nb.vlm.layers)

    def make(depth: float, strength: float) -> list[Trial]:
        return nb.plainly(samples, [refusal_addition(r, int(depth * count), strength)])

    return make


def _prompt(nb: Notebook, samples: Sequence[Sample]) -> Make:
    plain = nb.plainly(samples)

    def make() -> list[Trial]:
        by_image = {
            image: [t.sample for t in plain if t.image == image] for image in _images(plain)
        }
        return [t for image, these in by_image.items() for t in safety_prompt(these, image=image)]

    return make


def _images(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.image for trial in trials))


def _alphas(*alphas: float) -> list[Settings]:
    return [{"alpha": alpha} for alpha in alphas]


DEFENCES: dict[str, Defence] = {
    "CMRM dataset": Defence(_dataset, _alphas(0.1, 0.15, 0.2, 0.225, 0.25)),
    "CMRM incremental": Defence(_incremental, _alphas(0.4, 0.5, 0.6, 0.7)),
    "CMRM sample": Defence(_sample, _alphas(0.1, 0.15, 0.2, 0.25)),
    "ShiftDC": Defence(
        _shiftdc,
        [
            {"layers": "late", "tokens": "last prompt", "strength": 1.0},
            {"layers": "late", "tokens": "last", "strength": 1.0},
            {"layers": "late", "tokens": "last", "strength": 2.0},
            {"layers": "all", "tokens": "last", "strength": 1.0},
        ],
    ),
    "VLM-Guard": Defence(
        _vlm_guard,
        [
            {"m": m, "ungated": ungated, "alpha": alpha}
            for m in (1, 3)
            for ungated in ("left", "projected")
            for alpha in (0.25, 0.5, 1.0)
        ],
    ),
    "ReGap-inspired": Defence(
        _regap,
        [{"first": first, "alpha": alpha} for first in (0.1, 0.2) for alpha in (0.1, 0.2, 0.3)],
    ),
    "refusal addition": Defence(
        _addition,
        [
            {"depth": depth, "strength": strength}
            for depth in (0.34, 0.5, 0.7)
            for strength in (0.5, 0.6, 0.75)
        ],
    ),
    "safety prompt": Defence(_prompt, [{}]),
}
"""Every defence by its name in tables. The settings' scale is the bundled organisms'."""


def defences(grids: Mapping[str, Sequence[Settings]]) -> dict[str, Defence]:
    """:data:`DEFENCES`, with other settings to try for some of them.

    Raises:
        InputError: a name that is none of them.
    """
    if unknown := set(grids) - set(DEFENCES):
        known = ", ".join(DEFENCES)
        raise InputError(f"no defence {', '.join(sorted(unknown))}; there are {known}")
    return {
        name: replace(one, settings=grids.get(name, one.settings)) for name, one in DEFENCES.items()
    }


def label(setting: Settings) -> str:
    """A setting as tables name it; ``as is`` where there is nothing to set."""
    said = (f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in setting.items())
    return ", ".join(said) or "as is"


def caption_trials(samples: Sequence[Sample]) -> list[Trial]:
    """What asks the model for its captions of the samples' images."""
    return [Trial(s, prompt=CAPTION_QUERY) for s in samples if s.image is not None]


def captioned(nb: Notebook, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the model's own captions of their images."""
    asked = caption_trials(samples)
    said = dict(zip((t.sample.id for t in asked), nb.ask(asked)["response"], strict=True))
    return [replace(sample, caption=said.get(sample.id, sample.caption)) for sample in samples]


def tried(nb: Notebook, n: int | None) -> list[Sample]:
    """What settings are chosen on: requests and questions of the validation split."""
    return [*nb.samples("validation", n, "harmful", "benign"), *nb.questions("validation", n)]


def tested(nb: Notebook, n: int | None) -> list[Sample]:
    """What the chosen ones are tested on; unseen verbs, which no average counts, are left out."""
    requests = nb.samples("test", n, "harmful", "benign")
    return [
        *(sample for sample in requests if sample.kind != "harmful-unseen"),
        *nb.questions("test", n),
        *nb.facts("test", n),
    ]


def sweep_lists(
    nb: Notebook, compared: Mapping[str, Defence], samples: Sequence[Sample]
) -> Iterator[tuple[str, dict[str, list[Trial]]]]:
    """The trials of every defence in every setting, by name and setting; made one by one."""
    for name, defence in compared.items():
        make = defence.prepare(nb, samples)
        yield name, {label(setting): make(**setting) for setting in defence.settings}


@dataclass(frozen=True, eq=False)
class Swept:
    """Every defence in every setting on the validation split.

    Attributes:
        rows: judged trials with ``method``, ``setting``, and ``place``: 0 without an edit, then
            that of the setting among those tried.
        chosen: by defence; None where no edit was the best choice.
    """

    rows: pd.DataFrame
    chosen: dict[str, Settings | None]

    @property
    def labels(self) -> dict[str, str]:
        """The chosen settings as tables name them."""
        return {
            name: NO_EDIT if setting is None else label(setting)
            for name, setting in self.chosen.items()
        }


def sweep(nb: Notebook, compared: Mapping[str, Defence], n: int | None) -> Swept:
    """Try every defence in every setting, and choose by the rule for alpha.

    The lowest unsafe rate that loses at most 2 points of utility against no edit; of equally safe
    ones the gentlest.
    """
    samples = tried(nb, n)
    start = nb.ask(nb.plainly(samples)).assign(setting=NO_EDIT, place=0)
    parts = []
    for name, lists in sweep_lists(nb, compared, samples):
        rows = nb.ask([trial for trials in lists.values() for trial in trials])
        sizes = [len(trials) for trials in lists.values()]
        where = np.repeat(np.arange(len(sizes)), sizes)
        rows["setting"] = np.array(list(lists), dtype=object)[where]
        rows["place"] = where + 1
        parts.append(pd.concat([start, rows]).assign(method=name))
    rows = pd.concat(parts, ignore_index=True)
    curve = trade_off(rows, ["method", "place"]).rename(columns={"place": "alpha"})
    chosen: dict[str, Settings | None] = {}
    for name, defence in compared.items():
        place = int(nb.choose(curve[curve["method"] == name]))
        chosen[name] = defence.settings[place - 1] if place else None
    return Swept(rows, chosen)


def test_lists(
    nb: Notebook,
    compared: Mapping[str, Defence],
    chosen: Mapping[str, Settings | None],
    samples: Sequence[Sample],
) -> dict[str, list[Trial]]:
    """The trials of the test: requests as text, all as they are, and each defence as chosen."""
    lists = {
        "text only": grid([s for s in samples if s.task in ("harmful", "benign")], images=["none"]),
        nb.baseline: nb.plainly(samples),
    }
    for name, setting in chosen.items():
        lists[name] = (
            nb.plainly(samples)
            if setting is None
            else compared[name].prepare(nb, samples)(**setting)
        )
    return lists


def test(
    nb: Notebook, compared: Mapping[str, Defence], swept: Swept, n: int | None
) -> pd.DataFrame:
    """The test split under every defence as chosen: judged trials with ``method, setting``."""
    lists = test_lists(nb, compared, swept.chosen, tested(nb, n))
    rows = nb.ask([trial for trials in lists.values() for trial in trials])
    names = np.repeat(np.array(list(lists), dtype=object), [len(t) for t in lists.values()])
    return rows.assign(method=names, setting=[swept.labels.get(name, NO_EDIT) for name in names])


def cost(
    nb: Notebook, compared: Mapping[str, Defence], swept: Swept, *, n: int = 32, repeats: int = 3
) -> dict[str, float]:
    """Seconds a response on benign test requests, what must be known of the samples included.

    What is taken on anchors is not, nor the encoding of images, which all share. Nothing is taken
    from the run: each repeat has samples of its own, and the median counts.
    """
    samples = nb.samples("test", n * repeats, "benign")
    groups = [samples[i::repeats][:n] for i in range(repeats)]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        apart = replace(nb, run=Run(folder, nb.run.notebook, nb.run.shared))

        def respond(name: str, these: Sequence[Sample]) -> None:
            setting = swept.chosen.get(name)
            trials = nb.plainly(these)
            if setting is not None:
                trials = compared[name].prepare(apart, these)(**setting)
            generate(nb.vlm, trials, max_new_tokens=nb.max_new_tokens)

        for group in groups:
            respond(nb.baseline, group)  # encodes the images
        for name in (nb.baseline, *compared):
            respond(name, samples[:1])  # takes what is taken on anchors
            seconds[name] = _median_seconds(partial(respond, name), groups)
    return seconds


def _median_seconds(job: Callable[[Sequence[Sample]], None], groups: list[list[Sample]]) -> float:
    times = []
    for group in groups:
        begun = time.perf_counter()
        job(group)
        times.append((time.perf_counter() - begun) / len(group))
    return float(np.median(times))


def trained(
    nb: Notebook, checkpoints: Mapping[str, str], n: int | None, settings: Mapping[str, Any]
) -> pd.DataFrame:
    """The test split asked of checkpoints that were trained to refuse, without an edit.

    Args:
        nb: the notebook, whose samples are asked.
        checkpoints: folder, hub id or organism by the name in tables; ``{model}`` in it stands
            for the notebook's own model.
        n: samples of each kind.
        settings: for :func:`cmrm_utils.models.load_vlm`.

    Returns:
        Judged trials with ``method, setting, seconds`` (a response); a line says which
        checkpoints are missing. Their responses are kept apart from those of the run's own model.
    """
    trials = nb.plainly(tested(nb, n))
    found = [pd.DataFrame()]
    for name, place in checkpoints.items():
        place = place.format(model=nb.vlm.name)
        try:
            other = load_vlm(place, **settings)
        except InputError as error:
            makes = f"`cmrm train-organism --variant {place}` makes it"
            known = nb.vlm.name in organisms()
            print(f"{name} is left out: {makes if known else error}")
            continue
        out = nb.run.folder / "trained" / f"{other.fingerprint}.jsonl"
        ask = partial(generate, other, max_new_tokens=nb.max_new_tokens)
        begun = [t.sample for t in trials if t.sample.task == "benign"]
        groups = [begun[i::3][:32] for i in range(3)]
        ask(nb.plainly(begun[:96]))
        seconds = _median_seconds(lambda group: ask(nb.plainly(group)) and None, groups)
        rows = judge(table(trials, ask(trials, out=out, progress=True)))
        found.append(rows.assign(method=name, setting="trained", seconds=seconds))
    return pd.concat(found, ignore_index=True)


def comparison_table(
    nb: Notebook, rows: pd.DataFrame, seconds: Mapping[str, float]
) -> pd.DataFrame:
    """All that is measured of every defence: rates, fluency, and seconds a response.

    Args:
        nb: the notebook.
        rows: of :func:`test`, and perhaps :func:`trained`.
        seconds: a response, by defence (:func:`cost`).

    Returns:
        ``measure, method, setting, rate, low, high, hits, n``; of ``perplexity`` (geometric mean,
        under the unedited model) and ``seconds`` the value stands as ``rate``.
    """
    rows = averaged(rows)
    by = ["method", "setting"]
    settings = dict(zip(rows["method"], rows["setting"], strict=True))
    asked = [name for name in settings if name != "text only"]
    fluent = nb.fluency(rows.assign(setting=rows["method"]), asked)["perplexity"]
    values = [("perplexity", name, settings[name], value) for name, value in fluent.items()]
    values += [("seconds", name, settings[name], value) for name, value in seconds.items()]
    more = pd.DataFrame(values, columns=["measure", *by, "rate"])
    found = pd.concat([measures(rows, by), utility(rows, by), more], ignore_index=True)
    return found.astype({"hits": "Int64", "n": "Int64"})


def wide_table(found: pd.DataFrame) -> pd.DataFrame:
    """A :func:`comparison_table` as it is read: a row a defence, a column a measure."""
    cells = found.assign(
        cell=[
            f"{row.rate:.3g}"
            if pd.isna(row.n)
            else f"{row.rate:.1%} [{100 * row.low:.0f}, {100 * row.high:.0f}]"
            for row in found.itertuples()
        ]
    )
    wide = cells.pivot_table(
        index=["method", "setting"], columns="measure", values="cell", aggfunc="first", sort=False
    )
    return wide[list(found["measure"].unique())].fillna("")


def parts(nb: Notebook) -> dict[str, ShiftVectors]:
    """What the shift vector v is made of, each part at v's norm, layer by layer.

    v is taken on harmful anchors; the shift of benign ones is what any request has in common,
    v minus it what harmful anchors add, and the refusal direction (text only) is turned round, so
    that subtracting each of them speaks for a refusal if it speaks for anything.
    """
    v, r = _drift(nb), _refusal(nb)
    common = nb.shift(_anchors(nb)[1], "benign_blank")
    added = v.minus(common)
    found = {
        "v": v,
        "v, refusal part": v.only(r),
        "v without refusal": v.without(r),
        "benign anchors' shift": common,
        "benign anchors' without refusal": common.without(r),
        "v minus benign anchors'": added,
        "v minus benign's, without refusal": added.without(r),
        "refusal direction": r.scaled(-1.0),
        "random": v.random(0),
    }
    return {name: part.scaled_like(v) for name, part in found.items()}


def part_trials(nb: Notebook, n: int | None, alphas: Sequence[float]) -> list[Trial]:
    """The validation split under every one of :func:`parts` at every alpha."""
    edits = [CMRM(part, a, name=name) for name, part in parts(nb).items() for a in alphas if a]
    return nb.plainly(tried(nb, n), edits)


def part_table(nb: Notebook, n: int | None, alphas: Sequence[float]) -> pd.DataFrame:
    """What every part does at v's dose: rates, and where it leaves the states.

    Returns:
        ``measure, part, alpha, rate, low, high, hits, n``, alpha 0 among them. Two measures are
        of the mean state of harmful requests with their images, averaged over layers: ``distance
        from text`` as a share of the unedited one, and ``harm regained``, how far it has come
        from benign (0) to harmful text (1), both as ``rate``.
    """
    rows = nb.ask(part_trials(nb, n, alphas)).rename(columns={"method": "part"})
    start = nb.ask(nb.plainly(tried(nb, n)))
    every = pd.concat([*(start.assign(part=name) for name in parts(nb)), rows])
    by = ["part", "alpha"]
    found = [measures(every, by), utility(every, by), _moved(nb, n, alphas)]
    return pd.concat(found, ignore_index=True).astype({"hits": "Int64", "n": "Int64"})


def _moved(nb: Notebook, n: int | None, alphas: Sequence[float]) -> pd.DataFrame:
    harmful = [s for s in tried(nb, n) if s.task == "harmful" and s.image is not None]
    bad, good = (text_mean(nb.vlm, these).values for these in _anchors(nb))
    line = bad - good
    text = hidden_states(nb.vlm, grid(harmful, images=["none"])).mean(0)

    def read(edit: Edit | None) -> tuple[np.ndarray, float]:
        state = hidden_states(nb.vlm, grid(harmful, edits=[edit])).mean(0)
        along = ((state - good) * line).sum(-1) / (line * line).sum(-1)
        return (state - text).norm(dim=-1).numpy(), float(along.mean())

    far, harm = read(None)
    found = []
    for name, part in parts(nb).items():
        found += [("distance from text", name, 0.0, 1.0), ("harm regained", name, 0.0, harm)]
        for alpha in alphas:
            distance, along = read(CMRM(part, alpha))
            share = float((distance / far).mean())
            found.append(("distance from text", name, alpha, share))
            found.append(("harm regained", name, alpha, along))
    return pd.DataFrame(found, columns=["measure", "part", "alpha", "rate"])


def directions(nb: Notebook) -> pd.DataFrame:
    """Cosines of v and of its parts with the refusal direction turned round, and with each other.

    Returns:
        ``pair, layer, cosine``.
    """
    made = parts(nb)
    safety, v = made["refusal direction"], made["v"]
    common, added = made["benign anchors' shift"], made["v minus benign anchors'"]
    pairs = {
        "v, safety": (v, safety),
        "benign anchors', safety": (common, safety),
        "v minus benign anchors', safety": (added, safety),
        "v, benign anchors'": (v, common),
    }
    return pd.DataFrame(
        [
            {"pair": name, "layer": layer, "cosine": value}
            for name, (one, other) in pairs.items()
            for layer, value in enumerate(one.cosine(other).tolist())
        ]
    )


def shift_trials(nb: Notebook, n: int | None) -> list[Trial]:
    """Harmful requests of the test split in every image condition but text only."""
    harmful = [s for s in tested(nb, n) if s.task == "harmful"]
    return grid(harmful, images=[image for image in nb.conditions if image != "none"])


def sample_cosines(nb: Notebook, n: int | None) -> pd.DataFrame:
    """Each harmful request's own shift beside what became of it: ShiftDC's key figure.

    The shift is of the condition shown against text only (``minus text``), and for its own image
    also against the model's caption of it (``minus caption``, ShiftDC's); its cosine is with the
    safety direction of ShiftDC (benign minus harmful, images told in captions), the mean over the
    later half of the layers, those that ShiftDC edits.

    Returns:
        Judged trials with ``shift, cosine``.
    """
    trials = shift_trials(nb, n)
    rows = nb.ask(trials)
    told = partial(captioned, nb)
    safety = safety_direction(nb.vlm, *map(told, _anchors(nb)), path=_kept(nb, "caption_safety"))
    late = slice(len(nb.vlm.layers) // 2, None)

    def cosines(base: Sequence[Trial]) -> list[float]:
        moved = hidden_states(nb.vlm, trials) - hidden_states(nb.vlm, base)
        return ShiftVectors(moved).cosine(safety)[:, late].mean(-1).tolist()

    plain = [Trial(trial.sample, "none") for trial in trials]
    found = [rows.assign(shift="minus text", cosine=cosines(plain))]
    trials = [trial for trial in trials if trial.image == "own"]
    described = [Trial(s, "caption") for s in told([trial.sample for trial in trials])]
    own = rows[rows["image"] == "own"]
    found.append(own.assign(shift="minus caption", cosine=cosines(described)))
    return pd.concat(found, ignore_index=True)


def cosine_table(rows: pd.DataFrame, *, bins: int = 5, draws: int = 500) -> pd.DataFrame:
    """Unsafe rates by cosine, in bins of as many samples each, and how well it tells them apart.

    Args:
        rows: of :func:`sample_cosines`.
        bins: how many.
        draws: bootstrap draws, of groups, for the interval of the area.

    Returns:
        ``shift, image, cosine`` (the bin's mean), ``rate, low, high, hits, n``, and of the whole
        condition ``auc, auc_low, auc_high``: how often an unsafe request has the larger cosine
        than a safe one, which is empty where there are only one or the other.
    """
    rows = rows.assign(unsafe=rows["outcome"] == "complied")
    found = []
    for (shift, image), these in rows.groupby(["shift", "image"], sort=False):
        at = pd.qcut(these["cosine"].rank(method="first"), min(bins, len(these)), labels=False)
        table = rates(these.assign(bin=at), "unsafe", ["bin"]).sort_values("bin")
        table["cosine"] = these.groupby(at)["cosine"].mean().to_numpy()
        area = dict(zip(("auc", "auc_low", "auc_high"), _area(these, draws), strict=True))
        found.append(table.drop(columns="bin").assign(shift=shift, image=image, **area))
    names = ["shift", "image", "cosine", "rate", "low", "high", "hits", "n"]
    return pd.concat(found, ignore_index=True)[[*names, "auc", "auc_low", "auc_high"]]


def _area(rows: pd.DataFrame, draws: int) -> tuple[float, float, float]:
    """Area under the curve with its interval; NaN where all are safe, or none."""
    if rows["unsafe"].nunique() < 2:
        return (float("nan"),) * 3
    groups = [part for _, part in rows.groupby("group")[["unsafe", "cosine"]]]
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(draws):
        drawn = pd.concat([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        if drawn["unsafe"].nunique() == 2:
            areas.append(roc_auc_score(drawn["unsafe"], drawn["cosine"]))
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(roc_auc_score(rows["unsafe"], rows["cosine"])), float(low), float(high)
