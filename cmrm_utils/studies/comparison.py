"""Notebook 06: methods side by side, each as chosen, and checkpoints trained to refuse."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from cmrm_utils.bundled import recipe as pretrained
from cmrm_utils.engine.loops import generate, respond
from cmrm_utils.errors import InputError
from cmrm_utils.loading import load_vlm
from cmrm_utils.methods.base import Method, Settings
from cmrm_utils.methods.prompting import caption_trials
from cmrm_utils.methods.registry import PUBLISHED, label, with_settings
from cmrm_utils.models import VLM
from cmrm_utils.organism.recipe import training_command
from cmrm_utils.paths import bundled_folders
from cmrm_utils.prompts import CAPTION_FOR_QUERY, CAPTION_QUERY
from cmrm_utils.results.rates import measures, utility
from cmrm_utils.store import read_json
from cmrm_utils.studies import sweep
from cmrm_utils.studies.attack import check_searchable
from cmrm_utils.studies.evaluation import fluency
from cmrm_utils.studies.first_token import FirstTokens
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.sweep import TIMED, Chosen, median_seconds
from cmrm_utils.trials import Trial

PROMPTED = ("safety prompt", "ECSO")
"""Methods that ask the model to heed a prompt, which the invented world's was never taught."""


def compared(
    nb: Notebook, alphas: Sequence[float], grids: Mapping[str, Sequence[Settings]]
) -> dict[str, Method]:
    """The methods that model and data allow, in several settings and as published.

    A line says what is left out, and why.

    Args:
        nb: the notebook.
        alphas: of CMRM.
        grids: settings by method, in the place of its own.
    """
    methods = {**with_settings(alphas=alphas, grids=grids), **PUBLISHED}
    left: dict[str, str] = {}
    if nb.world:
        left = dict.fromkeys(
            PROMPTED, "the invented world's model was never taught to heed a prompt"
        )
    try:
        check_searchable(nb.vlm)
    except InputError as error:
        left |= dict.fromkeys((name for name in methods if "ASTRA" in name), str(error))
    for name, why in left.items():
        print(f"{name} is left out: {why}")
    return {name: method for name, method in methods.items() if name not in left}


def trials(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """06: captions, every method in every setting, the test."""
    methods = compared(nb, p["alphas"], p["grids"])
    samples = sweep.samples_tested(nb, p["n_test"], unseen=False)
    plain = sweep.validation(nb, p["n_validation"])
    anchors = [*nb.anchors.harmful, *nb.anchors.benign]
    described = [*anchors, *(trial.sample for trial in plain), *samples]
    for ask in (CAPTION_QUERY, CAPTION_FOR_QUERY):
        yield caption_trials(described, ask)
    yield plain
    for name, method in methods.items():  # one by one: each may ask the model something first
        yield sweep.sweep_trials(nb, {name: method}, plain)
    lists = sweep.test_lists(nb, sweep.choose(nb, methods, plain), samples, ("none", nb.image))
    yield [trial for these in lists.values() for trial in these]


def first_tokens(
    nb: Notebook,
    methods: Mapping[str, Method],
    checkpoints: Mapping[str, VLM],
    n: int | None,
) -> pd.DataFrame:
    """What every setting of every method does to the first response token, on validation.

    ECSO is left out: it asks again, and its first token is that of the second question.

    Args:
        nb: the notebook.
        methods: by name.
        checkpoints: models that were trained to refuse (:func:`load_trained`), without an edit.
        n: samples of each kind.

    Returns:
        ``method, setting``, and the columns of :meth:`FirstTokens.changes`.
    """
    tokens = FirstTokens(nb, n, "validation")
    rows = []
    for name in (name for name in methods if name != "ECSO"):
        changes = tokens.changes(sweep.settings_lists(nb, methods[name], tokens.trials))
        for setting, measured in zip(methods[name].settings, changes, strict=True):
            rows += [{"method": name, "setting": label(setting), **row} for row in measured]
    for name, other in checkpoints.items():
        (measured,) = tokens.changes([tokens.trials], other)
        rows += [{"method": name, "setting": "trained", **row} for row in measured]
    return pd.DataFrame(rows)


def test(nb: Notebook, chosen: Chosen, n: int | None) -> pd.DataFrame:
    """The test split under every method as chosen: judged trials with ``method, setting``."""
    samples = sweep.samples_tested(nb, n, unseen=False)
    rows = sweep.test(nb, chosen, samples, ("none", nb.image))
    settings = rows["setting"].map(chosen.labels).fillna(sweep.NO_EDIT)
    return rows.assign(method=rows["setting"], setting=settings)


def load_trained(
    nb: Notebook, places: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, VLM]:
    """Checkpoints that were trained to refuse; a line says which are missing.

    Args:
        nb: the notebook.
        places: folder, hub id or organism by the kind of training; ``{}`` in it stands for the
            notebook's own model.
        settings: for :func:`cmrm_utils.loading.load_vlm`.
    """
    models = {}
    for kind, place in places.items():
        name, place = f"VLGuard {kind}", place.format(nb.vlm.name)
        try:
            models[name] = load_vlm(place, **settings)
        except InputError as error:
            command = training_command(place)
            print(f"{name} is left out: {f'`{command}` makes it' if command else error}")
    return models


def training_cost(nb: Notebook, places: Mapping[str, str]) -> pd.Series:
    """What it took to train checkpoints, in words: steps, VLGuard's pairs, and seconds.

    Known of the bundled models' variants, whose folders hold a record.

    Args:
        nb: the notebook.
        places: as for :func:`load_trained`.

    Returns:
        By method and setting.
    """
    costs = {}
    for kind, place in places.items():
        name = place.format(nb.vlm.name)
        known, folder = pretrained.of_model(name), bundled_folders().get(name)
        if known and folder:
            recipe = known[0]
            (stage,) = recipe.stages.values()
            pairs = stage.steps * stage.batch * recipe.guarded / 2
            seconds = read_json(folder / "training.json")["seconds"]
            cost = f"{stage.steps} steps, {pairs:.0f} pairs, {seconds:,} s"
            costs[f"VLGuard {kind}", "trained"] = cost
    index = pd.MultiIndex.from_tuples(costs, names=["method", "setting"])
    return pd.Series(list(costs.values()), index, dtype=object)


def trained(nb: Notebook, checkpoints: Mapping[str, VLM], n: int | None) -> pd.DataFrame:
    """The test split asked of checkpoints that were trained to refuse, without an edit.

    Args:
        nb: the notebook, whose samples are asked.
        checkpoints: of :func:`load_trained`.
        n: samples of each kind.

    Returns:
        Judged trials with ``method, setting, seconds`` (a response). Their responses are kept
        apart from those of the run's own model.
    """
    plain = nb.plainly(sweep.samples_tested(nb, n, unseen=False))
    timed = [trial for trial in plain if trial.sample.task == "benign"][:TIMED]
    tables = [pd.DataFrame()]
    for name, other in checkpoints.items():
        out = nb.run.folder / "trained" / f"{other.fingerprint}.jsonl"
        limits: Any = {"max_new_tokens": nb.max_new_tokens, "openers": nb.openers}
        rows = nb.judged(plain, respond(other, plain, out=out, progress=True, **limits), other)
        generate(other, timed, max_new_tokens=1)  # encodes their images, if all were kept
        seconds = median_seconds(partial(generate, other, max_new_tokens=nb.max_new_tokens), timed)
        tables.append(rows.assign(method=name, setting="trained", seconds=seconds))
    return pd.concat(tables, ignore_index=True)


def comparison_table(
    nb: Notebook, rows: pd.DataFrame, seconds: Mapping[str, float]
) -> pd.DataFrame:
    """All that is measured of every method: rates, fluency, and seconds a response.

    Args:
        nb: the notebook.
        rows: of :func:`test`, and perhaps of :func:`trained`, which bring their seconds.
        seconds: a response, by method (:func:`cost`).

    Returns:
        ``measure, method, setting, rate, low, high, hits, n``, *twins refused* also apart
        from *over-refusal*; of ``perplexity`` (geometric mean, under the unedited model), ``words``
        (of responses to benign requests) and ``seconds`` the value stands as ``rate``.
    """
    by = ["method", "setting"]
    settings = dict(zip(rows["method"], rows["setting"], strict=True))
    if "seconds" in rows:
        seconds = {**seconds, **rows.groupby("method")["seconds"].first().dropna()}
    names = [name for name in settings if name != "text only"]
    fluent = fluency(nb, rows.assign(setting=rows["method"]), names)["perplexity"]
    values = [("perplexity", name, settings[name], value) for name, value in fluent.items()]
    benign = rows[rows["task"] == "benign"]
    lengths = benign["response"].str.split().str.len().groupby(benign["method"]).mean()
    values += [("words", name, settings[name], value) for name, value in lengths.items()]
    values += [("seconds", name, settings[name], value) for name, value in seconds.items()]
    more = pd.DataFrame(values, columns=["measure", *by, "rate"])
    twins = measures(rows[rows["kind"].str.contains("twin")], by)
    twins = twins[twins["measure"] == "over-refusal"].assign(measure="twins refused")
    rates = pd.concat([measures(rows, by), twins, utility(rows, by), more], ignore_index=True)
    return rates.astype({"hits": "Int64", "n": "Int64"})
