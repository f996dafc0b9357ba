"""What responses in natural language are measured with, beside the keyword judge.

No exact judge knows them. So two things are taken from what the model itself says to text alone:
the tokens that open its refusals, and how fluent its answers are. Both are found once for a run.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from cmrm_utils.data.load import load_samples, take
from cmrm_utils.engine.loops import respond, response_header
from cmrm_utils.errors import InputError
from cmrm_utils.judges.fluency import Limits, perplexity
from cmrm_utils.judges.keywords import is_refusal
from cmrm_utils.judges.openers import find_openers
from cmrm_utils.models import VLM
from cmrm_utils.sample import Sample
from cmrm_utils.store import Records, Response, check_same, hashed, read_json, write_json
from cmrm_utils.trials import Trial

REQUESTS = 60
"""Requests of each kind that the model answers as text, on anchors and on validation."""

REQUEST_TASKS = ("harmful", "benign")


@dataclass(frozen=True)
class Score:
    """What is kept of a response."""

    perplexity: float


class Yardstick:
    """The openers of refusals, the limits of fluency, and the perplexities that are known.

    Args:
        vlm: the model.
        data: the name of the data set.
        folder: of the run, in which all of it is kept.
        max_new_tokens: where responses are cut.

    Raises:
        InputError: the folder holds a yardstick that was made on other requests.

    Attributes:
        openers: ids of the tokens that open a refusal; none where the model refuses nothing.
        limits: beyond which a response is broken.
    """

    def __init__(self, vlm: VLM, data: str, folder: Path, max_new_tokens: int) -> None:
        self._vlm, self._folder = vlm, folder / "yardstick"
        self._max_new_tokens = max_new_tokens
        path = self._folder / "yardstick.json"
        asked = {split: _requests(data, split) for split in ("anchors", "validation")}
        labelled = (f"{s.task} {Trial(s, 'none').id}" for each in asked.values() for s in each)
        made_on = {"requests": hashed(labelled)}
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "lock"):  # of a run's workers the first makes it
            if not path.is_file():
                write_json(path, {**made_on, **self._make(**asked)})
        values = read_json(path)
        check_same({**made_on, **values}, made_on, path)  # earlier versions kept no hash
        self.openers = tuple(values["openers"])
        self.limits = Limits(**values["limits"])

    def _make(self, anchors: Sequence[Sample], validation: Sequence[Sample]) -> dict[str, Any]:
        try:
            said = self._own_responses(anchors)
            openers = find_openers(said, [is_refusal(response.text) for response in said])
        except InputError as error:
            print(error)
            openers = ()
        pairs = zip(validation, self._own_responses(validation), strict=True)
        answers = [(s, response) for s, response in pairs if not is_refusal(response.text)]
        values = self._perplexities(*zip(*answers, strict=True)) if answers else []
        limits = Limits.of(values, [response.text for _, response in answers])
        return {"openers": openers, "limits": asdict(limits)}

    def _own_responses(self, samples: Sequence[Sample]) -> list[Response]:
        """What the model says to requests as text alone."""
        return respond(
            self._vlm,
            [Trial(sample, "none") for sample in samples],
            max_new_tokens=self._max_new_tokens,
            out=self._folder / "text.jsonl",
            progress=True,
        )

    def _perplexities(
        self, samples: Sequence[Sample], responses: Sequence[Response | str]
    ) -> list[float]:
        """Of each response under the unedited model, after its request as text alone."""
        trials = [Trial(sample, "none") for sample in samples]
        return perplexity(self._vlm, trials, responses, progress=True)

    def measured(
        self, trials: Sequence[Trial], responses: Sequence[Response], of: VLM | None = None
    ) -> pd.DataFrame:
        """``log_odds`` of a refusal, and whether a response is ``broken``, a row a trial.

        Args:
            trials: what was asked.
            responses: the answers.
            of: the model that gave them, if it is another one; its scores have their own file.
        """
        name = f"scores-{of.fingerprint}.jsonl" if of else "scores.jsonl"
        shared = response_header(self._vlm, self._max_new_tokens)
        with Records(self._folder / name, shared, Score).appending() as sink:
            new = {
                trial.id: (trial.sample, response.text if of else response)
                for trial, response in zip(trials, responses, strict=True)
                if trial.sample.task in REQUEST_TASKS
                and sink.get(trial.id) is None
                and not is_refusal(response.text)
            }
            values = self._perplexities(*zip(*new.values(), strict=True)) if new else []
            sink.add(zip(new, map(Score, values), strict=True))
            scores = sink.all
        broken = [
            trial.id in scores and self.limits.broken(scores[trial.id].perplexity, response.text)
            for trial, response in zip(trials, responses, strict=True)
        ]
        return pd.DataFrame({"log_odds": [r.log_odds for r in responses], "broken": broken})


def _requests(data: str, split: str) -> list[Sample]:
    """The requests of a split that the model answers as text alone."""
    every = load_samples(data, split)
    tasks = [task for task in REQUEST_TASKS if any(s.task == task for s in every)]
    return take(every, REQUESTS, *tasks)
