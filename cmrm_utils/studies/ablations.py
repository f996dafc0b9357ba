"""Which part of the shift matters: the full edit beside edits that differ from it in one thing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from cmrm_utils.edits import Place
from cmrm_utils.engine.loops import first_logits
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.results.intervals import paired_difference
from cmrm_utils.results.rates import UNSEEN, measures
from cmrm_utils.results.text import percent_table
from cmrm_utils.studies.notebook import ANCHORS, Notebook
from cmrm_utils.studies.variants import LEVELS, UNDONE, Asked, Head, Variant, rank_variants
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import Level, ShiftVectors, extract_shift, principal_directions


@dataclass(eq=False)
class Ablations:
    """The samples of the two splits, and the vectors that variants take for them.

    Args:
        nb: the notebook.
        n: validation samples of each kind of request, and of questions.
        n_test: the same of the test split; kinds that belong to no average are left out.
    """

    nb: Notebook
    n: int | None
    n_test: int | None

    def __post_init__(self) -> None:
        self._samples = {
            split: [
                *(s for s in self.nb.samples(split, n, "harmful", "benign") if s.kind != UNSEEN),
                *self.nb.questions(split, n),
            ]
            for split, n in (("validation", self.n), ("test", self.n_test))
        }
        self._vectors: dict[tuple[str, Level, Place], ShiftVectors] = {}

    @property
    def layers(self) -> int:
        """How many decoder layers the model has."""
        return len(self.nb.vlm.layers)

    def vectors(self, split: str, level: Level, place: Place) -> ShiftVectors:
        """The shift at a place: of harmful anchors, or of each of a split's samples."""
        key = (split if level == "sample" else "", level, place)
        if key not in self._vectors:
            if level == "sample":
                samples = self._samples[split]
                made = extract_shift(self.nb.vlm, samples, level="sample", place=place)
            else:
                anchors = self.nb.samples("anchors", ANCHORS, "harmful")
                name = "harmful_blank" if place == "layer" else f"harmful_blank_{place}"
                made = self.nb.shift(anchors, name, place=place)
            self._vectors[key] = made
        return self._vectors[key]

    def trials(
        self, split: str, asked: Iterable[Asked] | None, *, harmful: bool = False
    ) -> list[Trial]:
        """A split's samples under every variant; without an edit for None.

        Args:
            split: ``validation`` or ``test``.
            asked: variants and their alphas.
            harmful: harmful requests alone.
        """
        samples = [s for s in self._samples[split] if s.harmful or not harmful]
        if asked is None:
            return self.nb.plainly(samples)
        edits = []
        for variant, alpha in asked:
            vectors = self.vectors(split, variant.level, variant.place)
            part = variant.part(vectors) if variant.part else vectors
            edits.append(
                CMRM(part, alpha, layers=variant.layers, tokens=variant.tokens, name=variant.name)
            )
        return self.nb.plainly(samples, edits)

    def rank_variants(self, levels: Iterable[Level], ranks: Iterable[int]) -> list[Variant]:
        """:func:`rank_variants` of the anchors' components, as far as there are so many."""
        anchors = self.nb.samples("anchors", ANCHORS, "harmful")
        most = min(len(anchors), self.nb.vlm.hidden_size)
        kept = [rank for rank in ranks if rank <= most]
        return rank_variants(levels, principal_directions(self.nb.vlm, anchors, max(kept)), kept)

    def shares(self, variants: Iterable[Variant]) -> pd.DataFrame:
        """How much of the shift each variant's part is, on the test split.

        Returns:
            The variants' labels and ``share``: of the squared length over all layers, mean over
            samples.
        """
        found = []
        for variant in variants:
            whole = self.vectors("test", variant.level, variant.place)
            part = variant.part(whole) if variant.part else whole
            share = (part.norms.square().sum(-1) / whole.norms.square().sum(-1)).mean()
            found.append({**variant.labels, "share": float(share)})
        return pd.DataFrame(found)

    def chosen(self, alphas: Sequence[float]) -> dict[str, float]:
        """The alpha of each level's full edit, as every notebook of the run has it.

        Args:
            alphas: those that CMRM is tried at.
        """
        found = self.nb.strengths(alphas, self.n).chosen
        return {level: found[f"CMRM {level}"] for level in LEVELS}

    def choose(self, variants: Sequence[Variant], alphas: Sequence[float]) -> dict[str, float]:
        """Each variant's alpha by the same rule, on the same samples; 0 is among those tried."""

        def make() -> pd.DataFrame:
            start = self.nb.ask(self.trials("validation", None))
            tried = [(variant, alpha) for variant in variants for alpha in alphas]
            rows = self.nb.ask(self.trials("validation", tried))
            return pd.concat([rows, *(start.assign(method=v.name) for v in variants)])

        names = [variant.name for variant in variants]
        samples = self._samples["validation"]
        study = f"ablation, {variants[0].level}:"
        choices = self.nb.choose_alphas(names, alphas, samples, make, study=study)
        return {name: choice.alpha for name, choice in choices.items()}

    def test(
        self, asked: Sequence[Asked] | None, *, harmful: bool = False, **labels: Any
    ) -> pd.DataFrame:
        """Judged trials of the test split, the variants' labels as columns, and further ones.

        Args:
            asked: variants and their alphas; None for no edit.
            harmful: harmful requests alone.
            labels: columns, the same for all.
        """
        trials = self.trials("test", asked, harmful=harmful)
        rows = self.nb.ask(trials)
        if asked is not None:
            each = len(rows) // len(asked)
            own = pd.DataFrame([v.labels for v, _ in asked for _ in range(each)])
            rows[list(own.columns)] = own
        return rows.assign(**labels)

    def head_effects(self, level: Level, alpha: float = UNDONE) -> pd.DataFrame:
        """What each head's shift, subtracted alone, does to the first token of harmful requests.

        On those of the validation split whose first token is another with the image than as text:
        how far the logit of the token that begins the answer to the text rises over that of the
        one that begins the answer to the image. On a model that refuses the text and obeys with the
        image, these are the beginnings of a refusal and of an answer; nothing is generated, so that
        every head of a large model can be tried.

        Returns:
            ``layer, head, effect, low, high, n, norm``: the mean rise and its 95% bootstrap
            interval (NaN where no first token differs), the greatest first, and the mean length of
            the head's shift.
        """
        vlm = self.nb.vlm
        each = vlm.width("heads") // vlm.head_size
        heads = [(layer, head) for layer in range(self.layers) for head in range(each)]
        rows = pd.DataFrame(heads, columns=["layer", "head"])
        if self.nb.dry:
            return rows
        every = [s for s in self._samples["validation"] if s.harmful and s.image is not None]
        text, shown = (
            first_logits(vlm, [Trial(s, image) for s in every]).argmax(-1)
            for image in ("none", "own")
        )
        at = (text != shown).nonzero()[:, 0].tolist()
        vectors = self.vectors("validation", level, "heads")
        sizes = vectors.values.unflatten(-1, (each, vlm.head_size)).norm(dim=-1)
        rows["norm"] = sizes.view(-1, len(heads)).mean(0).numpy()
        if not at:
            return rows.assign(effect=np.nan, low=np.nan, high=np.nan, n=0)

        def margins(part: ShiftVectors | None) -> pd.Series:
            edit = None if part is None else CMRM(part, alpha, tokens="last prompt")
            logits = first_logits(vlm, [Trial(every[i], "own", edit) for i in at])
            own = torch.arange(len(at))
            return pd.Series((logits[own, text[at]] - logits[own, shown[at]]).numpy())

        start = margins(None)
        groups = pd.Series([every[i].group or every[i].id for i in at])
        kinds = pd.Series([every[i].kind for i in at])
        found = [
            paired_difference(
                start,
                margins(vectors.heads([head], vlm.head_size)),
                groups=groups,
                strata=kinds,
            )
            for head in heads
        ]
        rows[["effect", "low", "high"]] = found
        return rows.assign(n=len(at)).sort_values("effect", ascending=False, ignore_index=True)


def ordered(effects: pd.DataFrame) -> list[Head]:
    """The heads of :meth:`Ablations.head_effects`, the greatest effect first."""
    return list(zip(effects["layer"].tolist(), effects["head"].tolist(), strict=True))


def compared(rows: pd.DataFrame, by: Sequence[str], reference: pd.DataFrame) -> pd.DataFrame:
    """Every measure of the rows, and what the unsafe rate is against a reference's.

    Args:
        rows: judged trials.
        by: the columns that make a cell of the table.
        reference: judged trials of the same harmful requests.

    Returns:
        :func:`cmrm_utils.results.rates.measures`, and of its ``refused`` rows ``change, change_low,
        change_high``: paired on the same requests, with the 95% interval of a bootstrap that draws
        verbs whole, within each kind. Of a cell that has a request several times (random draws)
        the mean counts.
    """
    found = measures(rows, by)
    start = _refused(reference)
    about = reference.groupby("sample")[["group", "kind"]].first()
    like = {"groups": about["group"], "strata": about["kind"]}
    changes = [
        (
            "refused",
            *(key if isinstance(key, tuple) else (key,)),
            *paired_difference(start, _refused(cell), **like),
        )
        for key, cell in rows[rows["task"] == "harmful"].groupby(list(by), sort=False)
    ]
    names = ["measure", *by, "change", "change_low", "change_high"]
    return found.merge(pd.DataFrame(changes, columns=names), how="left", on=["measure", *by])


def _refused(rows: pd.DataFrame) -> pd.Series:
    harmful = rows[rows["task"] == "harmful"]
    return (harmful["outcome"] == "refused").groupby(harmful["sample"]).mean()


def change_table(rows: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Measures as text (:func:`cmrm_utils.results.text.percent_table`), and the changes, in points.

    Args:
        rows: of :func:`compared`.
        index: the columns that name its rows.
    """
    table = percent_table(rows, index, "measure")
    refused = rows[rows["measure"] == "refused"].set_index(index)
    table["refused against the full edit"] = [
        f"{100 * change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        for change, low, high in refused[["change", "change_low", "change_high"]].to_numpy()
    ]
    return table


def fewest(curve: pd.DataFrame, wanted: float) -> int:
    """How few first heads bring the share refused to ``wanted``, each number at its own alpha.

    Args:
        curve: of :func:`compared`, rows of first heads alone, with a column ``k``.
        wanted: a rate.

    Returns:
        A number of heads; 0 where no number does.
    """
    refused = curve[curve["measure"] == "refused"]
    enough = refused.loc[refused["rate"] >= wanted, "k"]
    return int(enough.min()) if len(enough) else 0


def _rates(rows: pd.DataFrame, by: list[str]) -> pd.Series:
    """Shares refused by the columns that name them."""
    return rows[rows["measure"] == "refused"].set_index(by)["rate"]


def rises(start: float, rows: pd.DataFrame, by: list[str]) -> pd.Series:
    """How far above ``start`` each share refused of a table is.

    Args:
        start: the share without an edit.
        rows: of :func:`compared`.
        by: the columns that name its rows.
    """
    return _rates(rows, by) - start


def named(rows: pd.DataFrame, by: list[str]) -> dict[str, float]:
    """Shares refused of a table, each under a name made of what it is of."""
    return {
        f"refused, {' '.join(map(str, key if isinstance(key, tuple) else (key,)))}": float(rate)
        for key, rate in _rates(rows, by).items()
    }
