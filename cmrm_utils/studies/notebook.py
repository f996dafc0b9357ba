"""What the numbered notebooks work with: a model, samples, a run folder, and what they share."""

import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from cmrm_utils import conditions
from cmrm_utils.conditions import CONDITIONS, IN_WORDS
from cmrm_utils.data.load import left_out, load_samples, take
from cmrm_utils.edits import Edit
from cmrm_utils.engine.loops import generate, hidden_states
from cmrm_utils.errors import InputError
from cmrm_utils.judges.fluency import perplexity, repetition
from cmrm_utils.judges.outcomes import OUTCOMES, judge
from cmrm_utils.judges.panel import Asked, panel
from cmrm_utils.judges.reviews import load_reviewer, relative_scores, review
from cmrm_utils.loading import PLACEMENT, load_vlm
from cmrm_utils.methods.base import dose
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.models import VLM
from cmrm_utils.results import plots
from cmrm_utils.results.rates import UTILITY, averaged, choice_accuracy, measures, rates
from cmrm_utils.results.text import percent_table
from cmrm_utils.sample import Sample
from cmrm_utils.store import Responses
from cmrm_utils.studies.folder import Run, versions
from cmrm_utils.studies.parameters import check_own
from cmrm_utils.studies.selection import NO_UTILITY, Choice, Settings, choose, digest
from cmrm_utils.trials import Trial, grid, table
from cmrm_utils.vectors import ShiftVectors, cached_shift, extract_shift

ANCHORS = 100
"""Harmful anchors that the dataset-level vector of notebooks 03 to 05 is taken on, of each kind."""


METHODS = ("CMRM dataset", "CMRM incremental", "CMRM sample")
"""What 04 and 05 compare: one v for all, each layer's own share of it, each sample's own v."""


ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)
"""What CMRM is tried at by every notebook that is told no other alphas."""


@dataclass(frozen=True, eq=False)
class Strengths:
    """CMRM at the alphas chosen on the validation split.

    Attributes:
        choices: what was chosen for each method.
        vectors: the dataset-level vectors; None for a model that sees no images.
    """

    choices: dict[str, Choice]
    vectors: ShiftVectors | None

    @property
    def edited(self) -> list[str]:
        """The methods, as the settings of the test split are called."""
        return list(self.choices)

    @property
    def chosen(self) -> dict[str, float]:
        """The alpha chosen for each method; 0 where no edit is best."""
        return {name: choice.alpha for name, choice in self.choices.items()}

    @property
    def table(self) -> pd.DataFrame:
        """The choices as they are read, a row a method."""
        rows = {
            name: {
                "alpha": choice.alpha,
                "by the paper's reading": (choice.paper or {"alpha": 0.0})["alpha"],
                "why no edit": choice.why,
            }
            for name, choice in self.choices.items()
        }
        return pd.DataFrame(rows).T


@dataclass(frozen=True, eq=False)
class Sweep(Strengths):
    """CMRM over a grid of alphas on the validation split, and what was chosen.

    Attributes:
        rows: judged trials of every method, alpha 0 among them; of a model that sees no images
            those at alpha 0 alone, under the method ``no edit``.
        doses: ``|alpha v| / |h|``, mean over layers, by method and alpha.
    """

    rows: pd.DataFrame
    doses: pd.Series


@dataclass(eq=False)
class Notebook:
    """What every notebook of a run works with.

    Attributes:
        run: the run's folder.
        vlm: the model.
        data: the name of the data set.
        max_new_tokens: where responses are cut.
    """

    run: Run
    vlm: VLM
    data: str
    max_new_tokens: int
    dry: ClassVar[bool] = False  # lists of trials are made, and nothing is run

    @classmethod
    def open(
        cls,
        name: str,
        *,
        model: str,
        data: str,
        out: str,
        max_new_tokens: int = 32,
        settings: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load model and data, open the run's folder, set the look of figures, say versions.

        Args:
            name: of the notebook.
            model: for :func:`cmrm_utils.loading.load_vlm`.
            data: for :func:`cmrm_utils.data.load.load_samples`.
            out: the run's folder.
            max_new_tokens: where responses are cut.
            settings: for ``load_vlm`` too; all that can change a number is part of what the
                notebooks of a run share.
            parameters: of the notebook (its ``globals()``), to be checked before all else.

        Raises:
            InputError: no such model or data; a run folder made with other ones; a parameter of
                another type.
        """
        if parameters is not None:
            check_own(name, parameters)
        warnings.filterwarnings("ignore", category=FutureWarning)
        plots.style()
        pd.set_option("display.max_colwidth", None, "display.max_rows", 200)
        settings = settings or {}
        without = left_out(data) or None
        vlm = load_vlm(model, **settings)
        shared = {
            "model": model,
            "settings": {k: v for k, v in settings.items() if k not in PLACEMENT} or None,
            "fingerprint": vlm.fingerprint,
            "data": data,
            "left_out": without,
            "max_new_tokens": max_new_tokens,
        }
        run = Run(out, name, shared)
        print(", ".join(f"{package} {number}" for package, number in versions().items()))
        print(f"model {model} ({vlm.fingerprint}), {len(vlm.layers)} decoder layers")
        return cls(run, vlm, data, max_new_tokens)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The image conditions that the model can be shown."""
        return CONDITIONS if self.vlm.sees_images else IN_WORDS

    @property
    def methods(self) -> tuple[str, ...]:
        """What is subtracted from the model's states: nothing where no image can shift them."""
        return METHODS if self.vlm.sees_images else ()

    @cached_property
    def shown(self) -> str:
        """The image condition of requests when nothing is varied.

        Their own image; a blank one where no request of the data has an image; none for a model
        that sees no images.
        """
        if not self.vlm.sees_images:
            return "none"
        every = load_samples(self.data, "validation")
        requests = [s for s in every if s.task in ("harmful", "benign")]
        return "own" if any(s.image is not None for s in requests) or not requests else "blank"

    @property
    def baseline(self) -> str:
        """What edits are compared with: the samples as they are shown when nothing is varied."""
        return conditions.CONDITION_NAMES[self.shown]

    def _condition(self, sample: Sample) -> str | None:
        """How the model is asked a sample when nothing is varied; None where it cannot be.

        Requests as :attr:`shown` says, questions with their own image, or as they are where they
        have none.
        """
        if sample.task == "other":
            return None
        if sample.task in ("harmful", "benign"):
            return None if self.shown == "own" and sample.image is None else self.shown
        if self.vlm.sees_images:
            return "none" if sample.image is None else "own"
        return "none" if sample.image is None else None

    def plainly(
        self, samples: Iterable[Sample], edits: Sequence[Edit | None] = (None,)
    ) -> list[Trial]:
        """Every sample in the condition in which it is asked when only the edit varies."""
        asked = [(sample, image) for sample in samples if (image := self._condition(sample))]
        return [Trial(sample, image, edit) for edit in edits for sample, image in asked]

    def samples(self, split: str, n: int | None, *tasks: str) -> list[Sample]:
        """The first ``n`` samples of each task in a split, of requests of each kind; None: all."""
        return take(load_samples(self.data, split), n, *tasks)

    def questions(self, split: str, n: int | None) -> list[Sample]:
        """The first ``n`` visual and ``n`` multiple-choice questions, where there are any."""
        every = [s for s in load_samples(self.data, split) if self._condition(s)]
        here = {sample.task for sample in every}
        return take(every, n, *(task for task in ("visual", "choice") if task in here))

    def facts(self, split: str, n: int | None) -> list[Sample]:
        """The first ``n`` questions about facts, where there are any."""
        every = load_samples(self.data, split)
        return take(every, n, "fact") if any(s.task == "fact" for s in every) else []

    def ask(self, trials: Sequence[Trial]) -> pd.DataFrame:
        """The model's responses, judged: one row a trial. Kept in the run, and reused from it."""
        responses = generate(
            self.vlm,
            trials,
            max_new_tokens=self.max_new_tokens,
            out=self.run.responses,
            progress=True,
        )
        return judge(table(trials, responses))

    def choose(
        self,
        method: str,
        settings: Sequence[Settings],
        samples: Sequence[Sample],
        measure: Callable[[], pd.DataFrame],
    ) -> Choice:
        """A method's setting, chosen once for the run (:func:`.selection.choose`).

        Args:
            method: its name.
            settings: those tried, from the gentlest on.
            samples: of the validation split, on which they are tried.
            measure: gives the rates by ``place`` of the setting, 0 for no edit.
        """
        made_on = {
            "model": self.vlm.fingerprint,
            "data": self.data,
            "max_new_tokens": self.max_new_tokens,
            "samples": len(samples),
            "validation": digest([trial.id for trial in self.plainly(samples)]),
            "anchors": digest([f"{s.id} {s.prompt}" for s in load_samples(self.data, "anchors")]),
        }
        return choose(self.run.folder / "choices", method, settings, made_on, measure)

    def _responses(self, path: Path) -> Responses:
        shared = {"model": self.vlm.fingerprint, "max_new_tokens": self.max_new_tokens}
        return Responses(path, shared)

    def shift(self, anchors: Sequence[Sample], name: str, **settings: Any) -> ShiftVectors:
        """Shift vectors, from the run where another notebook left them, else made and kept.

        Notebooks take some on few anchors and some on many: the file's name says how many.

        Raises:
            InputError: the run's file of that name was made with other anchors or settings.
        """
        path = self.run.folder / "vectors" / f"{name}_{len(anchors)}.safetensors"
        return cached_shift(self.vlm, anchors, path, **settings)

    def strengths(self, alphas: Sequence[float], n: int | None) -> Strengths:
        """CMRM at the alphas chosen on validation, from the run where they are known.

        Args:
            alphas: strengths to choose from; 0 is added.
            n: samples of each kind of request, and of visual questions; None: the whole split.
        """
        vectors, levels, samples = self.compared(n)
        tried = sorted({*alphas} - {0.0})
        make = partial(self._swept, levels, samples, tried)
        return Strengths(self.choose_alphas(list(levels), tried, samples, make), vectors)

    def choose_alphas(
        self,
        methods: Sequence[str],
        alphas: Sequence[float],
        samples: Sequence[Sample],
        make: Callable[[], pd.DataFrame],
        *,
        study: str = "",
    ) -> dict[str, Choice]:
        """The alpha of several methods, each chosen once for the run (:meth:`choose`).

        Args:
            methods: their names.
            alphas: strengths to choose from, above 0.
            samples: of the validation split, on which they are tried.
            make: gives judged trials by ``method`` and ``alpha``, 0 among them; called at most
                once, and not at all where every choice is known.
            study: what the methods belong to, where other studies may have methods of their names.
        """
        tried = [{"alpha": float(alpha)} for alpha in sorted(alphas)]
        places = {0.0: 0, **{each["alpha"]: i for i, each in enumerate(tried, start=1)}}

        @cache
        def measured() -> pd.DataFrame:
            rows = make()
            return measures(rows.assign(place=rows["alpha"].map(places)), ["method", "place"])

        def of(method: str) -> pd.DataFrame:
            return measured()[measured()["method"] == method]

        return {
            name: self.choose(f"{study} {name}".strip(), tried, samples, partial(of, name))
            for name in methods
        }

    def sweep(self, alphas: Sequence[float], n: int | None) -> Sweep:
        """CMRM at dataset level (v, and each layer's own share) and at sample level, on validation.

        Args:
            alphas: strengths; 0 is added.
            n: samples of each kind of request, and of visual questions; None: the whole split.
        """
        vectors, levels, samples = self.compared(n)
        if not levels:
            print(
                f"{self.vlm.name} sees no images: no shift to subtract, it is asked in words only"
            )
            name = "no edit"
            rows = self.ask(self.plainly(samples)).assign(method=name)
            return Sweep({}, None, rows, pd.Series({(name, 0.0): 0.0}))
        made = self.strengths(alphas, n)
        states = hidden_states(self.vlm, self.plainly([s for s in samples if s.harmful]))
        doses = {
            (name, a): float(dose(CMRM(v, a), states).mean())
            for name, v in levels.items()
            for a in [0.0, *alphas]
        }
        rows = self._swept(levels, samples, alphas)
        return Sweep(made.choices, vectors, rows, pd.Series(doses))

    def _swept(
        self,
        levels: Mapping[str, ShiftVectors],
        samples: Sequence[Sample],
        alphas: Sequence[float],
    ) -> pd.DataFrame:
        """Judged trials of every method at every alpha, and at alpha 0."""
        plain, edited = self.sweep_trials(levels, samples, alphas)
        start = self.ask(plain)
        return pd.concat([*(start.assign(method=name) for name in levels), self.ask(edited)])

    def sweep_trials(
        self,
        levels: Mapping[str, ShiftVectors],
        samples: Sequence[Sample],
        alphas: Sequence[float],
    ) -> tuple[list[Trial], list[Trial]]:
        """The trials of :meth:`sweep`: without an edit, and under each method and alpha."""
        edits = [CMRM(v, a, name=name) for name, v in levels.items() for a in alphas if a]
        return self.plainly(samples), self.plainly(samples, edits)

    def compared(
        self, n: int | None
    ) -> tuple[ShiftVectors | None, dict[str, ShiftVectors], list[Sample]]:
        """The dataset-level shift, what each method subtracts, and what it is tried on."""
        samples = self.samples("validation", n, "harmful", "benign")
        samples += self.questions("validation", n)
        if not any(s.task != "harmful" and self._condition(s) for s in samples):
            raise InputError(f"{self.data}, validation split: {NO_UTILITY}")
        if not self.methods:
            return None, {}, samples
        vectors = self.shift(self.samples("anchors", ANCHORS, "harmful"), "harmful_blank")
        levels = {method: self._vectors(method, vectors, samples) for method in self.methods}
        return vectors, levels, samples

    def _vectors(
        self, method: str, vectors: ShiftVectors, samples: Sequence[Sample]
    ) -> ShiftVectors:
        """What a method of :data:`METHODS` subtracts; at sample level made for ``samples``."""
        if method == "CMRM sample":
            return extract_shift(self.vlm, samples, level="sample")
        return vectors.increments() if method == "CMRM incremental" else vectors

    def chosen_edit(self, swept: Strengths, samples: Sequence[Sample], method: str) -> Edit:
        """A method at its chosen alpha."""
        assert swept.vectors is not None
        vectors = self._vectors(method, swept.vectors, samples)
        return CMRM(vectors, swept.chosen[method], name=method)

    def test(self, n: int | None, swept: Strengths) -> pd.DataFrame:
        """The test split: every image condition, and each method at its chosen alpha.

        Adds ``setting``: the method's name, or the image condition's, which of questions is the
        :attr:`baseline`, whether or not they have an image.
        """
        plain, edited = self.test_trials(n, swept)
        rows = self.ask(plain)
        varied = rows["task"].isin(["harmful", "benign"])
        names = rows["image"].map(conditions.CONDITION_NAMES).where(varied, self.baseline)
        parts = [rows.assign(setting=names)]
        if edited:
            parts.append(self.ask(edited).assign(setting=lambda made: made["method"]))
        return pd.concat(parts, ignore_index=True)

    def test_trials(self, n: int | None, swept: Strengths) -> tuple[list[Trial], list[Trial]]:
        """The trials of :meth:`test`: without an edit, and under each method."""
        requests = self.samples("test", n, "harmful", "benign")
        questions = self.questions("test", n) + self.facts("test", n)
        every = [*requests, *questions]
        edits = [self.chosen_edit(swept, every, method) for method in swept.edited]
        plain = grid(requests, images=self.conditions) + self.plainly(questions)
        return plain, self.plainly(every, edits)

    def outcome_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Shares of the three outcomes of harmful requests by setting, unseen verbs apart.

        ``low, high`` are the 95% interval of ``refused``.
        """
        harmful = averaged(rows[rows["task"] == "harmful"])
        counted = rates(harmful.assign(hit=harmful["outcome"] == "refused"), "hit", ["setting"])
        shares = harmful.groupby("setting", sort=False)["outcome"].value_counts(normalize=True)
        wide = shares.unstack().reindex(columns=list(OUTCOMES)).fillna(0.0)
        return counted[["setting", "low", "high", "n"]].merge(wide.reset_index(), on="setting")

    def panel(
        self, rows: pd.DataFrame, judges: Sequence[str | Mapping[str, Any]]
    ) -> list[pd.DataFrame]:
        """Further judges on the responses to requests of the test split.

        Their verdicts are kept apart from the responses: in the run's ``verdicts``, and in the
        table ``04_verdicts``.

        Args:
            rows: of :meth:`test`.
            judges: for :meth:`cmrm_utils.judges.panel.Asked.parse`.

        Returns:
            Agreement with the outcomes of the tables above, and unsafe rates by setting; nothing,
            and a line that says so, where no judge is asked.
        """
        if not judges:
            print("no model judges are asked: name some, -p judges [llama-3-refused, harmbench]")
            return []
        requests = averaged(rows[rows["task"].isin(["harmful", "benign"])])
        asked = [Asked.parse(item) for item in judges]
        kept = self.run.folder / "verdicts"
        said, agreed, unsafe = panel(requests, asked, "outcome", kept=kept)
        self.run.table("04_verdicts", said)
        self.run.table("04_judges", agreed)
        self.run.table("04_judges_unsafe", unsafe)
        return [agreed.set_index("judge").round(3), percent_table(unsafe, "setting", "judge")]

    def choices(self, rows: pd.DataFrame) -> pd.DataFrame | None:
        """Multiple choice on the test split: accuracy over all questions, and those with an image.

        Kept in the run as ``05_choices``; None, and a line that says so, where the data has none.
        """
        asked = rows[(rows["task"] == "choice") & rows["setting"].isin(self._settings(rows))]
        if asked.empty:
            print("no multiple-choice questions in the data (scienceqa has them)")
            return None
        found = self.run.table("05_choices", choice_accuracy(asked, ["setting"]))
        return percent_table(found, "setting", "rows")

    def _settings(self, rows: pd.DataFrame) -> list[str]:
        """The baseline, and the methods among a test split's settings."""
        return [self.baseline, *(name for name in rows["setting"].unique() if name in self.methods)]

    def open_trials(self, n: int | None, swept: Strengths) -> list[Trial]:
        """The trials of :meth:`reviews`: open questions without an edit, and under each method."""
        every = [s for s in load_samples(self.data, "test") if s.task == "open"]
        asked = [sample for sample in every if self._condition(sample)][:n]
        edits = [self.chosen_edit(swept, asked, method) for method in swept.edited] if asked else []
        return self.plainly(asked, [None, *edits])

    def reviews(
        self, n: int | None, swept: Strengths, reviewer: str, url: str = ""
    ) -> pd.DataFrame | None:
        """Pairwise reviews of answers to the test split's open questions, as LLaVA-Bench's.

        The reviews are kept word for word in the run: as they come, and in the table
        ``05_reviews``; the scores in ``05_scores``.

        Args:
            n: how many questions; None: all.
            swept: with the chosen alphas.
            reviewer: for :func:`cmrm_utils.judges.reviews.load_reviewer`; empty for none.
            url: of the reviewer's endpoint.

        Returns:
            Relative scores by setting and kind of question; None, and a line that says so, where
            the data has no open questions or there is no reviewer.
        """
        trials = self.open_trials(n, swept)
        if not trials:
            print("no open questions for this model in the data (llava-bench-coco has them)")
            return None
        if not reviewer:
            print("open questions are not reviewed: name a reviewer, -p reviewer FOLDER_OR_MODEL")
            return None
        rows = self.ask(trials)
        settings = rows["method"].where(rows["method"] != "none", self.baseline)
        rows = rows.assign(setting=settings, caption=[trial.sample.caption for trial in trials])
        name = re.sub(r"[^\w.-]+", "-", f"{url} {reviewer}").strip("-")
        kept = self.run.folder / "reviews" / f"{name}.jsonl"
        critic = load_reviewer(reviewer, url)
        reviewed = self.run.table("05_reviews", review(rows, critic, out=kept, progress=True))
        scores = [
            relative_scores(part).assign(setting=setting)
            for setting, part in reviewed.groupby("setting", sort=False)
        ]
        found = self.run.table("05_scores", pd.concat(scores, ignore_index=True))
        return found.set_index(["setting", "kind"])

    def fluency(self, rows: pd.DataFrame, settings: Sequence[str] | None = None) -> pd.DataFrame:
        """Perplexity under the unedited model (geometric mean), and repeated word triples.

        Args:
            rows: judged trials of the test split, with a ``setting`` each.
            settings: of which; by default the baseline and :data:`METHODS`.
        """
        kept = rows[rows["setting"].isin(settings or self._settings(rows))]
        by_id = {sample.id: sample for sample in load_samples(self.data, "test")}
        asked = zip(kept["sample"], kept["image"], strict=True)
        trials = [Trial(by_id[sample], image) for sample, image in asked]
        known = self._responses(self.run.responses)
        given = zip(kept["trial"], kept["response"], strict=True)
        # Another model's response to the same trial is in a file of its own.
        responses = [
            own if (own := known.get(trial)) and own.text == text else text for trial, text in given
        ]
        scored = kept.assign(
            perplexity=perplexity(self.vlm, trials, responses, progress=True),
            repeated=[repetition(text) for text in kept["response"]],
        )
        return scored.groupby("setting", sort=False).agg(
            perplexity=("perplexity", _geometric_mean), repeated=("repeated", "mean")
        )

    def cost(self, swept: Strengths, *, n: int = 64, repeats: int = 3) -> pd.DataFrame:
        """Seconds a response, without an edit and with each method, on benign test requests."""
        benign = self.samples("test", n, "benign")[:n]
        samples = [trial.sample for trial in self.plainly(benign)]
        ways = ["no edit", *swept.edited]
        if not samples:
            print("no benign test request has an image: there is no response to time")
            return pd.DataFrame({"seconds": float("nan")}, index=ways)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for i, name in enumerate(seconds, start=-1):
                begun = time.perf_counter()
                edit = None if i < 0 else self.chosen_edit(swept, samples, swept.edited[i])
                trials = self.plainly(samples, [edit])
                generate(self.vlm, trials, max_new_tokens=self.max_new_tokens)
                seconds[name].append((time.perf_counter() - begun) / len(samples))
        medians = [float(np.median(times)) for times in seconds.values()]
        return pd.DataFrame({"seconds": medians}, index=list(seconds))

    def headline(self, rows: pd.DataFrame, swept: Strengths) -> pd.DataFrame:
        """The test split in one table of text: a row a setting, a column a measure."""
        found = measures(averaged(rows), ["setting"])
        found = found[~found["measure"].isin(["choices", "facts"])]
        chosen = {name: f"{name}, alpha {alpha:g}" for name, alpha in swept.chosen.items()}
        found["setting"] = found["setting"].replace(chosen)
        return percent_table(found, "setting", "measure").reset_index()

    def reading(self, rows: pd.DataFrame, swept: Strengths) -> str:
        """The headline table in words."""
        found = measures(averaged(rows), ["setting"]).set_index(["measure", "setting"])["rate"]
        here = self.run.shared["model"]
        if not swept.chosen:
            spoken = {"as text": "text only", "with a caption in words": "caption as text"}
            shares = [
                f"{found['refused', setting]:.1%} {said}"
                for said, setting in spoken.items()
                if ("refused", setting) in found.index
            ]
            return (
                f"{here} sees no images: there is no shift, and nothing to subtract. It refuses "
                f"harmful requests of the test split {' and '.join(shares)}."
            )
        told = {"none": "as text", "own": "with their own image", "blank": "with a blank one"}
        names = {image: conditions.CONDITION_NAMES[image] for image in told}
        plain = [
            f"{found['refused', names[image]]:.1%} {said}"
            for image, said in told.items()
            if ("refused", names[image]) in found.index
        ]
        edits = "; ".join(
            f"{name} at alpha {alpha:g} to {found['refused', name]:.1%} "
            f"({found['unsafe', name]:.1%} carried out, {found['neither', name]:.1%} neither)"
            if alpha
            else f"{name} stays without an edit, as {swept.choices[name].why}"
            for name, alpha in swept.chosen.items()
        )
        kept = [measure for measure in UTILITY if (measure, self.baseline) in found.index]
        cost = ", ".join(
            f"{measure} {found[measure, self.baseline]:.1%} without an edit and "
            f"{min(found[measure, name] for name in swept.edited):.1%} under the costliest"
            for measure in kept
        )
        return (
            f"On {here}, harmful requests of the test split are refused {', '.join(plain)}. "
            "With each alpha chosen on the validation split, the edits bring "
            f"{found['refused', self.baseline]:.1%} refused to this: {edits}. "
            f"What they cost: {cost}. In the table, unsafe (carried out) and neither are the rest "
            "of the harmful requests, brackets are 95% intervals, counts stand in parentheses."
        )


def _geometric_mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))
