"""Methods in all their settings on the validation split, one setting chosen, and the test of it."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cmrm_utils.conditions import CONDITION_NAMES
from cmrm_utils.data.load import load_samples
from cmrm_utils.engine.loops import generate, hidden_states
from cmrm_utils.errors import InputError
from cmrm_utils.methods.base import Method, Settings, edited, only_named
from cmrm_utils.methods.cmrm import ALPHAS, LEVELS
from cmrm_utils.methods.registry import label, with_settings
from cmrm_utils.results.rates import UNSEEN, measures
from cmrm_utils.sample import Sample
from cmrm_utils.store import hashed
from cmrm_utils.studies import selection
from cmrm_utils.studies.folder import Run
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.selection import NO_UTILITY, Choice
from cmrm_utils.trials import Trial, grid

NO_EDIT = "no edit"
"""The setting where nothing is edited."""

TIMED = 49
"""Benign requests that are timed, the first of them beforehand."""


def levels(nb: Notebook, alphas: Sequence[float] = ALPHAS) -> dict[str, Method]:
    """CMRM at its three levels; none for a model that sees no images, and so has no shift."""
    return with_settings(tuple(LEVELS), alphas=alphas) if nb.vlm.sees_images else {}


def validation(nb: Notebook, n: int | None) -> list[Trial]:
    """What settings are chosen on: requests and questions of the validation split, unedited.

    Raises:
        InputError: nothing there tells what an edit costs.
    """
    samples = nb.samples("validation", n, "harmful", "benign") + nb.questions("validation", n)
    trials = nb.plainly(samples)
    if all(trial.sample.harmful for trial in trials):
        raise InputError(f"{nb.data}, validation split: {NO_UTILITY}")
    return trials


def samples_tested(nb: Notebook, n: int | None, *, unseen: bool = True) -> list[Sample]:
    """What chosen settings are tested on: requests, questions and facts of the test split.

    Args:
        nb: the notebook.
        n: of each kind; None: all.
        unseen: whether requests of unseen verbs, which belong to no average, are among them.
    """
    requests = nb.samples("test", n, "harmful", "benign")
    these = [sample for sample in requests if unseen or sample.kind != UNSEEN]
    return [*these, *nb.questions("test", n), *nb.facts("test", n)]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Methods, each with the setting chosen for it on the validation split.

    Attributes:
        methods: by name.
        choices: by the same names.
    """

    methods: Mapping[str, Method]
    choices: Mapping[str, Choice]

    @property
    def alphas(self) -> dict[str, float]:
        """The alpha chosen for each method; 0 where no edit is best."""
        return {name: choice.alpha for name, choice in self.choices.items()}

    @property
    def labels(self) -> dict[str, str]:
        """The chosen settings as tables name them."""
        return {name: _named(choice.setting) for name, choice in self.choices.items()}

    @property
    def table(self) -> pd.DataFrame:
        """The choices as they are read, a row a method."""
        rows = {
            name: {
                "setting": _named(choice.setting),
                "by the paper's reading": _named(choice.paper),
                "why no edit": choice.why,
            }
            for name, choice in self.choices.items()
        }
        return pd.DataFrame(rows).T

    def edited(self, nb: Notebook, name: str, trials: Sequence[Trial]) -> list[Trial]:
        """Trials under a method as chosen; under no edit of its name where none is best."""
        setting = self.choices[name].setting
        if setting is None:
            return edited(trials, only_named(name))
        return self.methods[name].prepare(nb.anchors, trials)(**setting)


def _named(setting: Settings | None) -> str:
    return NO_EDIT if setting is None else label(setting)


@dataclass(frozen=True, eq=False)
class Swept(Chosen):
    """Methods in every setting on the validation split, and what was chosen.

    Attributes:
        rows: judged trials with ``method``, ``setting``, and ``place``: 0 without an edit, then
            that of the setting among those tried. Without methods, those without an edit alone.
    """

    rows: pd.DataFrame


def settings_lists(nb: Notebook, method: Method, trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials under a method in each of its settings."""
    make = method.prepare(nb.anchors, trials)
    return [make(**setting) for setting in method.settings]


def sweep_trials(
    nb: Notebook, methods: Mapping[str, Method], trials: Sequence[Trial]
) -> list[Trial]:
    """The trials of :func:`sweep`: unedited, then under each method in each of its settings."""
    lists = (settings_lists(nb, method, trials) for method in methods.values())
    return [*trials, *chain.from_iterable(chain.from_iterable(lists))]


def in_every_setting(
    nb: Notebook, name: str, method: Method, trials: Sequence[Trial]
) -> pd.DataFrame:
    """A method's rows of a sweep, those without an edit first."""
    lists = dict(enumerate([trials, *settings_lists(nb, method, trials)]))
    rows = nb.ask_lists(lists, "place")
    names = [NO_EDIT, *map(label, method.settings)]
    return rows.assign(method=name, setting=[names[place] for place in rows["place"]])


def choose(
    nb: Notebook,
    methods: Mapping[str, Method],
    trials: Sequence[Trial],
    rows_of: Callable[[str], pd.DataFrame] | None = None,
) -> Chosen:
    """Each method's setting, from the run where it is known, else tried and chosen by the rule.

    A method with nothing to set is taken as it is, and may cost more than the rule allows.

    Args:
        nb: the notebook.
        methods: by name.
        trials: unedited, of the validation split.
        rows_of: gives a method's rows of a sweep; by default they are made where needed.
    """
    rows_of = rows_of or (lambda name: in_every_setting(nb, name, methods[name], trials))
    anchors = load_samples(nb.data, "anchors")
    made_on = {
        "model": nb.vlm.fingerprint,
        "data": nb.data,
        "max_new_tokens": nb.max_new_tokens,
        "samples": len(trials),
        "validation": hashed(trial.id for trial in trials),
        "anchors": hashed(f"{sample.id} {sample.prompt}" for sample in anchors),
        "labels": hashed(
            f"{sample.kind} {sample.answer}"
            for sample in chain((trial.sample for trial in trials), anchors)
        ),
    }

    def choice(name: str, settings: Sequence[Settings]) -> Choice:
        if settings == [{}]:
            return Choice(settings[0], settings[0], "")
        if nb.dry:
            return Choice(settings[-1], None, "")
        folder = nb.run.folder / "choices"
        return selection.choose(
            folder, name, settings, made_on, lambda: measures(rows_of(name), ["place"])
        )

    return Chosen(methods, {name: choice(name, one.settings) for name, one in methods.items()})


def sweep(nb: Notebook, methods: Mapping[str, Method], trials: Sequence[Trial]) -> Swept:
    """Try methods in every setting, and choose one for each.

    Args:
        nb: the notebook.
        methods: by name; where there are none, the trials are asked as they are.
        trials: unedited, of the validation split (:func:`validation`).
    """
    if not methods:
        print(f"{nb.vlm.name} sees no images: no shift to subtract, it is asked in words only")
        return Swept({}, {}, nb.ask(trials).assign(method=NO_EDIT, setting=NO_EDIT, place=0))
    rows_of = cache(lambda name: in_every_setting(nb, name, methods[name], trials))
    chosen = choose(nb, methods, trials, rows_of)
    rows = pd.concat([rows_of(name) for name in methods], ignore_index=True)
    return Swept(methods, chosen.choices, rows)


def doses(nb: Notebook, swept: Swept, trials: Sequence[Trial]) -> pd.Series:
    """``|alpha v| / |h|``, mean over layers, by method and alpha: how large each edit is.

    h is the mean state of the harmful requests among the trials. Where vectors differ from sample
    to sample, their mean length counts.
    """
    if not swept.methods:
        return pd.Series({(NO_EDIT, 0.0): 0.0})
    states = hidden_states(nb.vlm, [trial for trial in trials if trial.sample.harmful])
    sizes = {}
    for name, method in swept.methods.items():
        unit = method.prepare(nb.anchors, trials)(alpha=1.0)
        size = torch.stack([t.edit.added.norm(dim=-1) for t in unit if t.edit]).mean(0)
        relative = float((size / states.norm(dim=-1).mean(0)).mean())
        for alpha in sorted({0.0, *(setting["alpha"] for setting in method.settings)}):
            sizes[name, alpha] = alpha * relative
    return pd.Series(sizes)


def test_lists(
    nb: Notebook, chosen: Chosen, samples: Sequence[Sample], conditions: Sequence[str]
) -> dict[str, list[Trial]]:
    """The trials of a test by setting: image conditions, then each method as chosen.

    Questions are asked in the condition that is the :attr:`Notebook.baseline` alone.
    """
    requests = [sample for sample in samples if sample.task in ("harmful", "benign")]
    plain = nb.plainly(samples)
    lists = {
        CONDITION_NAMES[image]: plain if image == nb.image else grid(requests, images=[image])
        for image in dict.fromkeys(conditions)
    }
    lists |= {name: chosen.edited(nb, name, plain) for name in chosen.choices}
    return {name: trials for name, trials in lists.items() if trials}


def test(
    nb: Notebook, chosen: Chosen, samples: Sequence[Sample], conditions: Sequence[str]
) -> pd.DataFrame:
    """Judged trials of :func:`test_lists`, with the list's name as ``setting``."""
    return nb.ask_lists(test_lists(nb, chosen, samples, conditions), "setting")


def cost(nb: Notebook, chosen: Chosen) -> dict[str, float]:
    """Seconds a response on benign test requests.

    The time includes what a method must learn of the samples. It leaves out what a method learns
    of the anchors, and the encoding of images, which all methods share. ShiftDC looks up its
    anchors' captions again, though: an eighth of its time on the organism. Nothing is reused from
    the run.
    """
    plain = nb.plainly(nb.samples("test", TIMED, "benign")[:TIMED])
    generate(nb.vlm, plain, max_new_tokens=nb.max_new_tokens)  # encodes their images
    with tempfile.TemporaryDirectory() as folder:
        apart = replace(nb, run=Run(Path(folder), nb.run.notebook, nb.run.shared))

        def respond(name: str, trials: Sequence[Trial]) -> list[str]:
            batch = chosen.edited(apart, name, trials) if name in chosen.choices else list(trials)
            return generate(nb.vlm, batch, max_new_tokens=nb.max_new_tokens)

        return {
            name: median_seconds(partial(respond, name), plain)
            for name in (nb.baseline, *chosen.choices)
        }


def median_seconds(
    respond: Callable[[Sequence[Trial]], list[str]], trials: Sequence[Trial]
) -> float:
    """Seconds a response: the median over thirds of the trials.

    Each trial is asked once. The first one is not timed, since a method learns of the anchors with
    it. NaN where there are no others.
    """
    if len(trials) < 2:
        return float("nan")
    respond(trials[:1])
    times = []
    for these in filter(None, (trials[1 + i :: 3] for i in range(3))):
        begun = time.perf_counter()
        respond(these)
        times.append((time.perf_counter() - begun) / len(these))
    return float(np.median(times))
