"""What the numbered notebooks work with: a model, samples, a run folder, and what they share."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any, Self

import pandas as pd

from cmrm_utils.conditions import CONDITION_NAMES, CONDITIONS, IN_WORDS
from cmrm_utils.data.load import left_out, load_samples, take
from cmrm_utils.edits import Edit
from cmrm_utils.engine.loops import respond, response_header
from cmrm_utils.judges.outcomes import judge
from cmrm_utils.loading import PLACEMENT, load_vlm
from cmrm_utils.methods.base import Anchors
from cmrm_utils.models import VLM
from cmrm_utils.results import plots
from cmrm_utils.results.responses import table
from cmrm_utils.sample import Sample
from cmrm_utils.store import Response
from cmrm_utils.studies.attack import adversarial_pairs
from cmrm_utils.studies.folder import Run, versions
from cmrm_utils.studies.parameters import check_own
from cmrm_utils.studies.yardstick import Yardstick
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors, cached_shift

ANCHORS = 100
"""Anchors of each kind that methods are fitted on."""


@dataclass(eq=False)
class Notebook:
    """What every notebook of a run works with.

    Attributes:
        run: the run's folder.
        vlm: the model.
        data: the name of the data set.
        max_new_tokens: where responses are cut.
        respond: gives responses to trials; None for the model itself, which keeps them in the run.
        dry: whether lists of trials are made only to be counted: of every method the strongest
            setting is taken, for no edit would need no response of its own.
    """

    run: Run
    vlm: VLM
    data: str
    max_new_tokens: int
    respond: Callable[[Sequence[Trial]], list[Response]] | None = None
    dry: bool = False

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
        respond: Callable[[Sequence[Trial]], list[Response]] | None = None,
        dry: bool = False,
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
            respond: as the attribute.
            dry: as the attribute.

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
            "left_out": left_out(data) or None,
            "max_new_tokens": max_new_tokens,
        }
        run = Run(out, name, shared)
        print(", ".join(f"{package} {number}" for package, number in versions().items()))
        mark = ", not checked against transformers" if vlm.checked is False else ""
        print(f"model {model} ({vlm.fingerprint}), {len(vlm.layers)} decoder layers{mark}")
        return cls(run, vlm, data, max_new_tokens, respond, dry)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The image conditions that the model can be shown."""
        return CONDITIONS if self.vlm.sees_images else IN_WORDS

    @cached_property
    def image(self) -> str:
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
        return CONDITION_NAMES[self.image]

    def _condition(self, sample: Sample) -> str | None:
        """How the model is asked a sample when nothing is varied; None where it cannot be.

        Requests as :attr:`image` says, questions with their own image, or as they are where they
        have none.
        """
        if sample.task == "other":
            return None
        if sample.task in ("harmful", "benign"):
            return None if self.image == "own" and sample.image is None else self.image
        if sample.image is None:
            return "none"
        return "own" if self.vlm.sees_images else None

    def plainly(
        self, samples: Iterable[Sample], edits: Sequence[Edit | None] = (None,)
    ) -> list[Trial]:
        """Every sample in the condition in which it is asked when only the edit varies."""
        pairs = [(sample, image) for sample in samples if (image := self._condition(sample))]
        return [Trial(sample, image, edit) for edit in edits for sample, image in pairs]

    def samples(self, split: str, n: int | None, *tasks: str) -> list[Sample]:
        """The first ``n`` samples of each task in a split, of requests of each kind; None: all.

        Requests that cannot be asked as the others are (:meth:`plainly`) are left out, unless they
        are anchors, so that rates by image condition are of the same requests. A line says so.
        """
        every = load_samples(self.data, split)
        shown = {s for s in every if split == "anchors" or self._condition(s)}
        known = {sample.task for sample in shown}
        kept = [s for s in every if s in shown or s.task not in known]
        if left := sum(sample.task in tasks for sample in set(every) - set(kept)):
            print(f"{split}: {left} requests without an image are left out, since others have one")
        return take(kept, n, *tasks)

    def questions(self, split: str, n: int | None) -> list[Sample]:
        """The first ``n`` visual and ``n`` multiple-choice questions, where there are any."""
        every = [s for s in load_samples(self.data, split) if self._condition(s)]
        here = {sample.task for sample in every}
        return take(every, n, *(task for task in ("visual", "choice") if task in here))

    def facts(self, split: str, n: int | None) -> list[Sample]:
        """The first ``n`` questions about facts, where there are any."""
        every = load_samples(self.data, split)
        return take(every, n, "fact") if any(s.task == "fact" for s in every) else []

    @property
    def world(self) -> bool:
        """Whether the data is of the invented world, whose exact judge knows the outcomes."""
        return any(sample.world for sample in load_samples(self.data, "validation"))

    @property
    def openers(self) -> tuple[int, ...]:
        """Ids of the tokens that open the model's refusals; none in the invented world."""
        return self.yardstick.openers if self.yardstick else ()

    @property
    def shared(self) -> dict[str, Any]:
        """What all responses of the run have in common: the first line of their file."""
        return response_header(self.vlm, self.max_new_tokens, self.openers)

    @cached_property
    def yardstick(self) -> Yardstick | None:
        """What responses in natural language are measured with; None in the invented world."""
        if self.dry or self.world:
            return None
        return Yardstick(self.vlm, self.data, self.run.folder, self.max_new_tokens)

    def answers(self, trials: Sequence[Trial]) -> list[Response]:
        """The model's responses; kept in the run, and reused from it."""
        if self.respond is not None:
            return self.respond(trials)
        return respond(
            self.vlm,
            trials,
            max_new_tokens=self.max_new_tokens,
            out=self.run.responses,
            openers=self.openers,
            progress=True,
        )

    def responses(self, trials: Sequence[Trial]) -> list[str]:
        """The texts of :meth:`answers`."""
        return [response.text for response in self.answers(trials)]

    def ask(self, trials: Sequence[Trial]) -> pd.DataFrame:
        """The model's responses, judged: one row a trial.

        In natural language each also has the ``log_odds`` of a refusal, and may be ``broken``.
        """
        return self.judged(trials, self.answers(trials))

    def judged(
        self, trials: Sequence[Trial], answers: Sequence[Response], of: VLM | None = None
    ) -> pd.DataFrame:
        """Responses, judged as by :meth:`ask`; ``of`` is the model that gave them, if another."""
        rows = table(trials, [response.text for response in answers])
        if self.yardstick and trials:
            rows = rows.join(self.yardstick.measured(trials, answers, of))
        return judge(rows)

    def ask_lists(self, lists: Mapping[Any, Sequence[Trial]], column: str) -> pd.DataFrame:
        """:meth:`ask` of several lists at once, with each row's list named in a column."""
        names = [name for name, trials in lists.items() for _ in trials]
        return self.ask(list(chain.from_iterable(lists.values()))).assign(**{column: names})

    @cached_property
    def anchors(self) -> Anchors:
        """What methods are fitted on: the first :data:`ANCHORS` anchors of each kind there is."""
        harmful = self.samples("anchors", ANCHORS, "harmful")
        there = any(s.task == "benign" for s in load_samples(self.data, "anchors"))
        benign = self.samples("anchors", ANCHORS, "benign") if there else []
        folder = self.run.folder / "vectors"
        attacks = self.run.folder / "attacks"
        pictures = partial(adversarial_pairs, self.vlm, harmful, attacks, dry=self.dry)
        return Anchors(self.vlm, harmful, benign, self.responses, folder, pictures)

    def shift(self, anchors: Sequence[Sample], name: str, **settings: Any) -> ShiftVectors:
        """Shift vectors, from the run where another notebook left them, else made and kept.

        Notebooks take some on few anchors and some on many: the file's name says how many.

        Raises:
            InputError: the run's file of that name was made with other anchors or settings.
        """
        path = self.run.folder / "vectors" / f"{name}_{len(anchors)}.safetensors"
        return cached_shift(self.vlm, anchors, path, **settings)
