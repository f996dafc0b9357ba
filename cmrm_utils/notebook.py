"""What the numbered notebooks work with: a model, samples, a run folder, and what they share."""

import re
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from cmrm_utils import plots
from cmrm_utils.data import Sample, load_samples, take
from cmrm_utils.engine import generate, hidden_states
from cmrm_utils.fluency import perplexity
from cmrm_utils.hooks import Edit
from cmrm_utils.judges import OUTCOMES, judge
from cmrm_utils.methods import CMRM, dose
from cmrm_utils.metrics import (
    averaged,
    choice_accuracy,
    choose_alpha,
    clustered_interval,
    measures,
    percent_table,
    repetition,
    trade_off,
)
from cmrm_utils.models import PLACEMENT, VLM, load_vlm, organisms
from cmrm_utils.panel import Asked, panel
from cmrm_utils.parameters import check_own
from cmrm_utils.reviews import load_reviewer, relative_scores, review
from cmrm_utils.store import STORED, Responses, Run, versions
from cmrm_utils.trials import CONDITIONS, IN_WORDS, Trial, grid, table
from cmrm_utils.vectors import ShiftVectors, cached_shift, extract_shift

ANCHORS = 100
"""Harmful anchors that the dataset-level vector of notebooks 03 to 05 is taken on, of each kind."""

METHODS = ("CMRM dataset", "CMRM incremental", "CMRM sample")
"""What 04 and 05 compare: one v for all, each layer's own share of it, each sample's own v."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """CMRM over a grid of alphas on the validation split.

    Attributes:
        rows: judged trials of every method, alpha 0 among them; of a model that sees no images
            those at alpha 0 alone, under the method ``no edit``.
        doses: ``|alpha v| / |h|``, mean over layers, by method and alpha.
        chosen: the alpha chosen for each method.
        vectors: the dataset-level vectors; None for a model that sees no images.
    """

    rows: pd.DataFrame
    doses: pd.Series
    chosen: dict[str, float]
    vectors: ShiftVectors | None

    @property
    def edited(self) -> list[str]:
        """The methods, as the settings of the test split are called."""
        return list(self.chosen)


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
            model: for :func:`cmrm_utils.models.load_vlm`.
            data: for :func:`cmrm_utils.data.load_samples`.
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
        vlm = load_vlm(model, **settings)
        shared = {
            "model": model,
            "settings": {k: v for k, v in settings.items() if k not in PLACEMENT} or None,
            "fingerprint": vlm.fingerprint,
            "data": data,
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

    @property
    def baseline(self) -> str:
        """What edits are compared with: the samples with their own images, if it sees any."""
        return plots.CONDITION_NAMES["own" if self.vlm.sees_images else "none"]

    def _condition(self, sample: Sample) -> str | None:
        """How the model is asked a sample when nothing is varied; None where it cannot be.

        With the sample's own image; a question that has none as it is; by a model that sees no
        images, requests as text.
        """
        request = sample.task in ("harmful", "benign")
        if self.vlm.sees_images:
            return "own" if sample.image is not None else None if request else "none"
        return "none" if request or sample.image is None else None

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

    def choose(self, curve: pd.DataFrame) -> float:
        """The strength chosen on validation (:func:`cmrm_utils.metrics.choose_alpha`)."""
        return choose_alpha(curve)

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

    def sweep(self, alphas: Sequence[float], n: int | None) -> Sweep:
        """CMRM at dataset level (v, and each layer's own share) and at sample level, on validation.

        Args:
            alphas: strengths; 0 is added.
            n: samples of each kind of request, and of visual questions.
        """
        vectors, levels, samples = self.compared(n)
        plain, edited = self.sweep_trials(levels, samples, alphas)
        start = self.ask(plain)
        if not levels:
            print(
                f"{self.vlm.name} sees no images: no shift to subtract, it is asked in words only"
            )
            name = "no edit"
            return Sweep(start.assign(method=name), pd.Series({(name, 0.0): 0.0}), {}, None)
        rows = pd.concat([*(start.assign(method=name) for name in levels), self.ask(edited)])
        states = hidden_states(self.vlm, grid([s for s in samples if s.harmful]))
        doses = {
            (name, a): float(dose(CMRM(v, a), states).mean())
            for name, v in levels.items()
            for a in [0.0, *alphas]
        }
        curve = trade_off(rows, ["method", "alpha"])
        chosen = {name: self.choose(curve[curve["method"] == name]) for name in levels}
        return Sweep(rows, pd.Series(doses), chosen, vectors)

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

    def chosen_edit(self, swept: Sweep, samples: Sequence[Sample], method: str) -> Edit:
        """A method at its chosen alpha."""
        assert swept.vectors is not None
        vectors = self._vectors(method, swept.vectors, samples)
        return CMRM(vectors, swept.chosen[method], name=method)

    def test(self, n: int | None, swept: Sweep) -> pd.DataFrame:
        """The test split: every image condition, and each method at its chosen alpha.

        Adds ``setting``: the method's name, or the image condition's, which of questions is the
        :attr:`baseline`, whether or not they have an image.
        """
        plain, edited = self.test_trials(n, swept)
        rows = self.ask(plain)
        varied = rows["task"].isin(["harmful", "benign"])
        names = rows["image"].map(plots.CONDITION_NAMES).where(varied, self.baseline)
        parts = [rows.assign(setting=names)]
        if edited:
            parts.append(self.ask(edited).assign(setting=lambda made: made["method"]))
        return pd.concat(parts, ignore_index=True)

    def test_trials(self, n: int | None, swept: Sweep) -> tuple[list[Trial], list[Trial]]:
        """The trials of :meth:`test`: without an edit, and under each method."""
        requests = self.samples("test", n, "harmful", "benign")
        questions = self.questions("test", n) + self.facts("test", n)
        every = [*requests, *questions]
        edits = [self.chosen_edit(swept, every, method) for method in swept.edited]
        plain = grid(requests, images=self.conditions) + self.plainly(questions)
        return plain, self.plainly(every, edits)

    def outcome_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Shares of the three outcomes of harmful requests by setting, unseen verbs apart."""
        rows = averaged(rows)
        found = []
        for setting, these in rows[rows["task"] == "harmful"].groupby("setting", sort=False):
            shares: dict[str, Any] = {o: (these["outcome"] == o).mean() for o in OUTCOMES}
            unsafe = (these["outcome"] == "complied").to_numpy()
            low, high = clustered_interval(unsafe, these["group"].tolist())
            found.append({"setting": setting, **shares, "low": low, "high": high, "n": len(these)})
        return pd.DataFrame(found)

    def panel(
        self, rows: pd.DataFrame, judges: Sequence[str | Mapping[str, Any]]
    ) -> list[pd.DataFrame]:
        """Further judges on the responses to requests of the test split.

        Their verdicts are kept apart from the responses: in the run's ``verdicts``, and in the
        table ``04_verdicts``.

        Args:
            rows: of :meth:`test`.
            judges: for :meth:`cmrm_utils.panel.Asked.parse`.

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

    def open_trials(self, n: int | None, swept: Sweep) -> list[Trial]:
        """The trials of :meth:`reviews`: open questions without an edit, and under each method."""
        every = [s for s in load_samples(self.data, "test") if s.task == "open"]
        asked = [sample for sample in every if self._condition(sample)][:n]
        edits = [self.chosen_edit(swept, asked, method) for method in swept.edited] if asked else []
        return self.plainly(asked, [None, *edits])

    def reviews(
        self, n: int | None, swept: Sweep, reviewer: str, url: str = ""
    ) -> pd.DataFrame | None:
        """Pairwise reviews of answers to the test split's open questions, as LLaVA-Bench's.

        The reviews are kept word for word in the run: as they come, and in the table
        ``05_reviews``; the scores in ``05_scores``.

        Args:
            n: how many questions; None: all.
            swept: with the chosen alphas.
            reviewer: for :func:`cmrm_utils.reviews.load_reviewer`; empty for none.
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

    def cost(self, swept: Sweep, *, n: int = 64, repeats: int = 3) -> pd.DataFrame:
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

    def headline(self, rows: pd.DataFrame, swept: Sweep) -> pd.DataFrame:
        """The test split in one table of text: a row a setting, a column a measure."""
        found = measures(averaged(rows), ["setting"])
        found = found[~found["measure"].isin(["choices", "facts"])]
        chosen = {name: f"{name}, alpha {alpha:g}" for name, alpha in swept.chosen.items()}
        found["setting"] = found["setting"].replace(chosen)
        return percent_table(found, "setting", "measure").reset_index()

    def reading(self, rows: pd.DataFrame, swept: Sweep) -> str:
        """The headline table in words."""
        found = measures(averaged(rows), ["setting"]).set_index(["measure", "setting"])["rate"]
        here = self.run.shared["model"]
        if not swept.chosen:
            spoken = {"as text": "text only", "with a caption in words": "caption as text"}
            shares = [
                f"{found['unsafe', setting]:.1%} {said}"
                for said, setting in spoken.items()
                if ("unsafe", setting) in found.index
            ]
            return (
                f"{here} sees no images: there is no shift, and nothing to subtract. It carries "
                f"out harmful requests of the test split {' and '.join(shares)}."
            )
        own = found["unsafe", "own image"]
        edits = "; ".join(
            f"{name} at alpha {alpha:g} to {found['unsafe', name]:.1%}, "
            f"with {found['neither', name]:.1%} neither refused nor carried out"
            for name, alpha in swept.chosen.items()
        )
        kept = [m for m in ("benign answered", "visual questions", "choices") if m in found.index]
        cost = ", ".join(
            f"{measure} {found[measure, self.baseline]:.1%} without an edit and "
            f"{min(found[measure, name] for name in swept.edited):.1%} under the costliest"
            for measure in kept
        )
        return (
            f"On {here}, harmful requests of the test split are carried out "
            f"{found['unsafe', 'text only']:.1%} of the time as text, "
            f"{own:.1%} with their own image and "
            f"{found['unsafe', 'blank image']:.1%} with a blank one. With each alpha chosen on the "
            f"validation split, the edits bring the {own:.1%} down: {edits}. "
            f"What they cost: {cost}. In the table, unsafe and neither are of harmful requests, "
            "brackets are 95% intervals, counts stand in parentheses."
        )

    def stored(self, name: str, profile: str = "full") -> pd.DataFrame | None:
        """A stored table of several models; None if this one is not among them.

        ``cmrm run full`` and ``cmrm publish runs/full`` make those of the full grid, and so with
        other profiles; ``described_requests`` was put together from the organisms' cards.
        """
        rows = _stored(name)
        if rows is not None and self.vlm.fingerprint in set(rows["fingerprint"]):
            return rows.drop(columns=["fingerprint"])
        what = "full grid" if profile == "full" else name
        print(
            f"no {what} is stored for this model; `cmrm run {profile}` makes that of the organisms"
        )
        return None

    def others(self, name: str, profile: str) -> pd.DataFrame | None:
        """A stored table of organisms trained otherwise than this one; None beside other models.

        ``cmrm run`` with the profile and ``cmrm publish`` make it.
        """
        rows = _stored(name)
        if rows is not None and self.vlm.name in organisms():
            counted = {"hits", "n"} <= set(rows)
            return rows.dropna(subset="n").astype({"hits": int, "n": int}) if counted else rows
        print(f"no {name} beside this model; `cmrm run {profile}` makes it of other organisms")
        return None


def _stored(name: str) -> pd.DataFrame | None:
    path = STORED / f"{name}.csv"
    return pd.read_csv(path, keep_default_na=False, na_values=[""]) if path.exists() else None


def _geometric_mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))
