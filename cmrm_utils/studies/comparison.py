"""Defences side by side, each with its setting chosen on validation by the same rule.

A defence is one entry of :data:`DEFENCES`: what it must know of the samples beforehand, and the
settings it is tried in. Sweeping, choosing, testing and timing are the same for all.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cmrm_utils.engine.loops import generate
from cmrm_utils.errors import InputError
from cmrm_utils.judges.outcomes import judge
from cmrm_utils.loading import load_vlm
from cmrm_utils.methods.addition import refusal_addition
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.methods.prompting import safety_prompt
from cmrm_utils.methods.regap import ReGap, regained, text_mean
from cmrm_utils.methods.shiftdc import ShiftDC, caption_shift
from cmrm_utils.methods.vlm_guard import VLMGuard, difference_directions, text_states
from cmrm_utils.models import VLM
from cmrm_utils.organism.recipe import training_command
from cmrm_utils.prompts import CAPTION_QUERY
from cmrm_utils.results.rates import UNSEEN, measures, utility
from cmrm_utils.sample import Sample
from cmrm_utils.studies.folder import Run
from cmrm_utils.studies.notebook import ALPHAS, ANCHORS, METHODS, Notebook
from cmrm_utils.studies.selection import Choice, Settings
from cmrm_utils.trials import Trial, grid, table
from cmrm_utils.vectors import ShiftVectors, extract_shift, safety_direction

Make = Callable[..., list[Trial]]


TIMED = 49
"""Requests that are timed, the first of them beforehand."""


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


def anchors(nb: Notebook) -> tuple[list[Sample], list[Sample]]:
    """Harmful and benign anchors."""
    return nb.samples("anchors", ANCHORS, "harmful"), nb.samples("anchors", ANCHORS, "benign")


def kept(nb: Notebook, name: str) -> Path:
    """Where the run keeps vectors that are taken on :data:`ANCHORS` anchors of each kind."""
    return nb.run.folder / "vectors" / f"{name}_{ANCHORS}.safetensors"


def drift(nb: Notebook) -> ShiftVectors:
    """CMRM's v, of harmful anchors and a blank image."""
    return nb.shift(anchors(nb)[0], "harmful_blank")


def refusal(nb: Notebook) -> ShiftVectors:
    """Harmful minus benign, text only."""
    safety = safety_direction(nb.vlm, *anchors(nb), image="none", path=kept(nb, "text_safety"))
    return safety.scaled(-1.0)


def _dataset(nb: Notebook, samples: Sequence[Sample]) -> Make:
    v = drift(nb)
    return lambda alpha: nb.plainly(samples, [CMRM(v, alpha)])


def _incremental(nb: Notebook, samples: Sequence[Sample]) -> Make:
    u = drift(nb).increments()
    return lambda alpha: nb.plainly(samples, [CMRM(u, alpha)])


def _sample(nb: Notebook, samples: Sequence[Sample]) -> Make:
    own = extract_shift(nb.vlm, samples, level="sample")
    return lambda alpha: nb.plainly(samples, [CMRM(own, alpha)])


def _shiftdc(nb: Notebook, samples: Sequence[Sample]) -> Make:
    told = partial(captioned, nb)
    pictured = [[s for s in these if s.image is not None] for these in anchors(nb)]
    if all(pictured):
        path = kept(nb, "caption_safety")
        safety = safety_direction(nb.vlm, *map(told, pictured), path=path)
    else:  # one kind of anchors has no images to tell: the direction of the texts alone
        safety = refusal(nb).scaled(-1.0)
    shift = caption_shift(nb.vlm, told(samples))
    return lambda **setting: nb.plainly(samples, [ShiftDC(shift, safety, **setting)])


def _vlm_guard(nb: Notebook, samples: Sequence[Sample]) -> Make:
    readings = text_states(nb.vlm, samples)

    def make(m: int, **setting: Any) -> list[Trial]:
        m = min(m, *map(len, anchors(nb)))  # a small set has no more pairs to differ
        path = kept(nb, f"differences_{m}")
        directions = difference_directions(nb.vlm, *anchors(nb), m, path=path)
        return nb.plainly(samples, [VLMGuard(directions, readings, **setting)])

    return make


def _regap(nb: Notebook, samples: Sequence[Sample]) -> Make:
    v, r = drift(nb), refusal(nb)
    bad, good = (
        text_mean(nb.vlm, these, path=kept(nb, name))
        for these, name in zip(anchors(nb), ("harmful_text", "benign_text"), strict=True)
    )

    def make(first: float, alpha: float) -> list[Trial]:
        correction = CMRM(v, first, tokens="last")
        w = regained(nb.vlm, samples, correction, harmful=bad, benign=good)
        return nb.plainly(samples, [ReGap(v, r, w, alpha, first=first)])

    return make


def _addition(nb: Notebook, samples: Sequence[Sample]) -> Make:
    r, count = refusal(nb), len(nb.vlm.layers)

    # The edit adds to a layer's output. At depth 0.67 of six layers that is the input of block 5,
    # one further on than the first 80% of them, in which the method's paper looks for its layer.
    def make(depth: float, strength: float) -> list[Trial]:
        return nb.plainly(samples, [refusal_addition(r, int(depth * count), strength)])

    return make


def _prompt(nb: Notebook, samples: Sequence[Sample]) -> Make:
    plain = nb.plainly(samples)

    def make() -> list[Trial]:
        by_image = {
            image: [t.sample for t in plain if t.image == image] for image in images_of(plain)
        }
        return [t for image, these in by_image.items() for t in safety_prompt(these, image=image)]

    return make


def images_of(trials: Sequence[Trial]) -> list[str]:
    """The image conditions of trials, each once."""
    return list(dict.fromkeys(trial.image for trial in trials))


def _each(**values: Sequence[Any]) -> list[Settings]:
    """Every combination of the values of settings, the last name's changing fastest."""
    return [dict(zip(values, one, strict=True)) for one in product(*values.values())]


DEFENCES: dict[str, Defence] = {
    "CMRM dataset": Defence(_dataset, _each(alpha=ALPHAS)),
    "CMRM incremental": Defence(_incremental, _each(alpha=ALPHAS)),
    "CMRM sample": Defence(_sample, _each(alpha=ALPHAS)),
    "ShiftDC": Defence(
        _shiftdc,
        [
            *_each(layers=["late", "all"], tokens=["last prompt", "last"], strength=[1.0]),
            {"layers": "late", "tokens": "last", "strength": 1.5},
        ],
    ),
    "VLM-Guard": Defence(
        _vlm_guard,
        [
            *_each(ungated=["left"], m=[1, 3], alpha=[0.1, 0.25]),
            {"ungated": "projected", "m": 1, "alpha": 0.25},
        ],
    ),
    "ReGap-inspired": Defence(
        _regap,
        [{"first": f, "alpha": a} for f, a in ((0.1, 0.1), (0.1, 0.2), (0.15, 0.15), (0.2, 0.1))],
    ),
    "refusal addition": Defence(_addition, _each(depth=[0.5, 0.67], strength=[0.5, 0.6, 0.75])),
    "safety prompt": Defence(_prompt, [{}]),
}
"""Every defence by its name in tables. The settings' scale is that of ``organism``."""


def defences(
    grids: Mapping[str, Sequence[Settings]], alphas: Sequence[float] = ALPHAS
) -> dict[str, Defence]:
    """:data:`DEFENCES`, with other settings to try for some of them.

    Args:
        grids: settings by defence.
        alphas: of CMRM at every level; 0 is left out.

    Raises:
        InputError: a name that is none of them, or settings that tables could not tell apart.
    """
    strengths = _each(alpha=sorted({float(alpha) for alpha in alphas} - {0.0}))
    grids = {**dict.fromkeys(METHODS, strengths), **grids}
    for name, settings in grids.items():
        labels = [label(setting) for setting in settings]
        if twice := {each for each in labels if labels.count(each) > 1}:
            raise InputError(f"{name}: {', '.join(sorted(twice))} is among the settings twice")
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
    if not asked:
        return list(samples)
    said = dict(zip((t.sample.id for t in asked), nb.ask(asked)["response"], strict=True))
    return [replace(sample, caption=said.get(sample.id, sample.caption)) for sample in samples]


def tried(nb: Notebook, n: int | None) -> list[Sample]:
    """What settings are chosen on: requests and questions of the validation split."""
    return [*nb.samples("validation", n, "harmful", "benign"), *nb.questions("validation", n)]


def tested(nb: Notebook, n: int | None) -> list[Sample]:
    """What the chosen ones are tested on; unseen verbs, which no average counts, are left out."""
    requests = nb.samples("test", n, "harmful", "benign")
    return [
        *(sample for sample in requests if sample.kind != UNSEEN),
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
        choices: by defence.
    """

    rows: pd.DataFrame
    choices: dict[str, Choice]

    @property
    def chosen(self) -> dict[str, Settings | None]:
        """The setting chosen for each defence; None where no edit is best."""
        return {name: choice.setting for name, choice in self.choices.items()}

    @property
    def labels(self) -> dict[str, str]:
        """The chosen settings as tables name them."""
        return {name: _named(setting) for name, setting in self.chosen.items()}

    @property
    def table(self) -> pd.DataFrame:
        """The choices as they are read, a row a defence."""
        rows = {
            name: {
                "setting": _named(choice.setting),
                "by the paper's reading": _named(choice.paper),
                "why no edit": choice.why,
            }
            for name, choice in self.choices.items()
        }
        return pd.DataFrame(rows).T


def _named(setting: Settings | None) -> str:
    return NO_EDIT if setting is None else label(setting)


def sweep(nb: Notebook, compared: Mapping[str, Defence], n: int | None) -> Swept:
    """Try every defence in every setting, and choose by the rule for alpha.

    Where there is one setting there is nothing to choose, and it may cost more than the rule
    allows.
    """
    samples = tried(nb, n)
    start = nb.ask(nb.plainly(samples)).assign(setting=NO_EDIT, place=0)
    parts, choices = [], {}
    for name, lists in sweep_lists(nb, compared, samples):
        rows = nb.ask([trial for trials in lists.values() for trial in trials])
        sizes = [len(trials) for trials in lists.values()]
        where = np.repeat(np.arange(len(sizes)), sizes)
        rows["setting"] = np.array(list(lists), dtype=object)[where]
        rows["place"] = where + 1
        whole = pd.concat([start, rows]).assign(method=name)
        settings = compared[name].settings
        choices[name] = (
            Choice(settings[0], settings[0], "")
            if len(settings) == 1
            else nb.choose(name, settings, samples, partial(measures, whole, ["place"]))
        )
        parts.append(whole)
    return Swept(pd.concat(parts, ignore_index=True), choices)


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


def cost(nb: Notebook, compared: Mapping[str, Defence], swept: Swept) -> dict[str, float]:
    """Seconds a response on benign test requests, what must be known of the samples included.

    What is taken on anchors is not, nor the encoding of images, which all share; but ShiftDC looks
    its anchors' captions up again, an eighth of its time on the organism. Nothing is taken from
    the run.
    """
    plain = nb.plainly(nb.samples("test", TIMED, "benign")[:TIMED])
    samples = [trial.sample for trial in plain]
    generate(nb.vlm, plain, max_new_tokens=nb.max_new_tokens)  # encodes their images
    with tempfile.TemporaryDirectory() as folder:
        apart = replace(nb, run=Run(folder, nb.run.notebook, nb.run.shared))

        def respond(name: str, these: Sequence[Sample]) -> list[str]:
            setting = swept.chosen.get(name)
            trials = (
                nb.plainly(these)
                if setting is None
                else compared[name].prepare(apart, these)(**setting)
            )
            return generate(nb.vlm, trials, max_new_tokens=nb.max_new_tokens)

        return {
            name: median_seconds(partial(respond, name), samples)
            for name in (nb.baseline, *compared)
        }


def median_seconds(
    respond: Callable[[Sequence[Sample]], list[str]], samples: Sequence[Sample]
) -> float:
    """Seconds a response: the median over thirds of the samples, none of which is met twice.

    The first sample is not timed: what is taken on anchors is taken with it. NaN without others.
    """
    if len(samples) < 2:
        return float("nan")
    respond(samples[:1])
    times = []
    for these in filter(None, (samples[1 + i :: 3] for i in range(3))):
        begun = time.perf_counter()
        respond(these)
        times.append((time.perf_counter() - begun) / len(these))
    return float(np.median(times))


def trained(
    nb: Notebook, checkpoints: Mapping[str, str], n: int | None, settings: Mapping[str, Any]
) -> pd.DataFrame:
    """The test split asked of checkpoints that were trained to refuse, without an edit.

    Args:
        nb: the notebook, whose samples are asked.
        checkpoints: folder, hub id or organism by the kind of training; ``{}`` in it stands for
            the notebook's own model.
        n: samples of each kind.
        settings: for :func:`cmrm_utils.loading.load_vlm`.

    Returns:
        Judged trials with ``method, setting, seconds`` (a response); a line says which
        checkpoints are missing. Their responses are kept apart from those of the run's own model.
    """
    trials = nb.plainly(tested(nb, n))
    samples = [t.sample for t in trials if t.sample.task == "benign"][:TIMED]
    found = [pd.DataFrame()]
    for kind, place in checkpoints.items():
        name, place = f"VLGuard {kind}", place.format(nb.vlm.name)
        try:
            other = load_vlm(place, **settings)
        except InputError as error:
            command = training_command(place)
            print(f"{name} is left out: {f'`{command}` makes it' if command else error}")
            continue
        out = nb.run.folder / "trained" / f"{other.fingerprint}.jsonl"
        said = generate(other, trials, max_new_tokens=nb.max_new_tokens, out=out, progress=True)
        rows = judge(table(trials, said))

        def respond(these: Sequence[Sample], vlm: VLM = other) -> list[str]:
            return generate(vlm, nb.plainly(these), max_new_tokens=nb.max_new_tokens)

        # Encodes their images, which responses that were kept leave undone.
        generate(other, nb.plainly(samples), max_new_tokens=1)
        seconds = median_seconds(respond, samples)
        found.append(rows.assign(method=name, setting="trained", seconds=seconds))
    return pd.concat(found, ignore_index=True)


def comparison_table(
    nb: Notebook, rows: pd.DataFrame, seconds: Mapping[str, float]
) -> pd.DataFrame:
    """All that is measured of every defence: rates, fluency, and seconds a response.

    Args:
        nb: the notebook.
        rows: of :func:`test`, and perhaps of :func:`trained`, which bring their seconds.
        seconds: a response, by defence (:func:`cost`).

    Returns:
        ``measure, method, setting, rate, low, high, hits, n``; of ``perplexity`` (geometric mean,
        under the unedited model) and ``seconds`` the value stands as ``rate``.
    """
    by = ["method", "setting"]
    settings = dict(zip(rows["method"], rows["setting"], strict=True))
    if "seconds" in rows:
        seconds = {**seconds, **rows.groupby("method")["seconds"].first().dropna()}
    asked = [name for name in settings if name != "text only"]
    fluent = nb.fluency(rows.assign(setting=rows["method"]), asked)["perplexity"]
    values = [("perplexity", name, settings[name], value) for name, value in fluent.items()]
    values += [("seconds", name, settings[name], value) for name, value in seconds.items()]
    more = pd.DataFrame(values, columns=["measure", *by, "rate"])
    found = pd.concat([measures(rows, by), utility(rows, by), more], ignore_index=True)
    return found.astype({"hits": "Int64", "n": "Int64"})
