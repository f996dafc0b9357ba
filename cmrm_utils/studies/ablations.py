"""Which part of the shift matters: the full edit beside edits that differ from it in one thing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from cmrm_utils.edits import Edit, Place
from cmrm_utils.engine.loops import first_logits
from cmrm_utils.methods.base import Method, by_alpha
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.results.intervals import paired_difference
from cmrm_utils.results.rates import UNSEEN, measures
from cmrm_utils.results.text import percent_table
from cmrm_utils.studies import sweep, variants
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.variants import LEVELS, UNDONE, Head, Setting, Variant, with_alphas
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import Level, ShiftVectors, extract_shift, principal_directions


def trials(nb: Notebook, p: Mapping[str, Any]) -> Iterator[list[Trial]]:
    """08: alphas on the validation split; the test split at those then chosen."""
    ab, level = Ablations(nb, p["n_validation"], p["n_test"]), p["level"]
    full = variants.full_variants()
    layers = variants.layer_variants(level, ab.layers, p["most"])
    alone = [variant for variant in layers if variant.labels["set"] == "alone"]
    kinds = variants.token_variants(level)
    order = ordered(ab.head_effects(level))
    heads = variants.head_variants(level, nb.vlm, order, p["counts"])
    random = variants.head_variants(level, nb.vlm, order, p["counts"], draws=p["draws"])
    tried = [(alone, p["layer_alphas"]), (kinds, p["token_alphas"]), (heads, p["head_alphas"])]
    pairs = [pair for these, alphas in tried for pair in product(these, alphas)]
    methods = sweep.levels(nb, p["alphas"])
    yield [
        *sweep.sweep_trials(nb, methods, sweep.validation(nb, p["n_validation"])),
        *ab.trials("validation", pairs),
    ]
    chosen = ab.chosen(p["alphas"])
    own, by_kind, by_count = (ab.choose(*these) for these in tried)
    alpha = chosen[level]
    grid = variants.grid_variants(level, ab.layers, p["most"])
    mlps = variants.mlp_variants(level, ab.layers, p["most"])
    parts = ab.rank_variants(LEVELS, p["ranks"])
    yield [
        *ab.trials("test", None),
        *ab.trials("test", with_alphas(full, chosen)),
        *ab.trials("test", with_alphas(layers, alpha), harmful=True),
        *ab.trials("test", with_alphas(alone, own)),
        *ab.trials("test", with_alphas(kinds, alpha)),
        *ab.trials("test", with_alphas(kinds, by_kind)),
        *ab.trials("test", with_alphas(grid, max(own.values())), harmful=True),
        *ab.trials("test", with_alphas(heads, UNDONE)),
        *ab.trials("test", with_alphas(heads, by_count)),
        *ab.trials("test", with_alphas(random, UNDONE), harmful=True),
        *ab.trials("test", with_alphas(random, by_count), harmful=True),
        *ab.trials("test", with_alphas(mlps, UNDONE), harmful=True),
        *ab.trials("test", with_alphas(parts, chosen), harmful=True),
    ]


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
                vectors = extract_shift(self.nb.vlm, samples, level="sample", place=place)
            else:
                name = "harmful_blank" if place == "layer" else f"harmful_blank_{place}"
                vectors = self.nb.shift(self.nb.anchors.harmful, name, place=place)
            self._vectors[key] = vectors
        return self._vectors[key]

    def trials(
        self, split: str, settings: Iterable[Setting] | None, *, harmful: bool = False
    ) -> list[Trial]:
        """A split's samples under every variant; without an edit for None.

        Args:
            split: ``validation`` or ``test``.
            settings: variants and their alphas.
            harmful: harmful requests alone.
        """
        samples = [s for s in self._samples[split] if s.harmful or not harmful]
        edits = [None] if settings is None else [self._edit(split, *one) for one in settings]
        return self.nb.plainly(samples, edits)

    def rank_variants(self, levels: Iterable[Level], ranks: Iterable[int]) -> list[Variant]:
        """:func:`.variants.rank_variants` of the anchors' components, of as many as there are."""
        anchors = self.nb.anchors.harmful
        most = min(len(anchors), self.nb.vlm.hidden_size)
        counts = [rank for rank in ranks if rank <= most]
        directions = principal_directions(self.nb.vlm, anchors, max(counts))
        return variants.rank_variants(levels, directions, counts)

    def shares(self, whose: Iterable[Variant]) -> pd.DataFrame:
        """How much of the shift each variant's part is, on the test split.

        Returns:
            The variants' labels and ``share``: of the squared length over all layers, mean over
            samples.
        """
        rows = []
        for variant in whose:
            whole = self.vectors("test", variant.level, variant.place)
            part = variant.part(whole)
            share = (part.norms.square().sum(-1) / whole.norms.square().sum(-1)).mean()
            rows.append({**variant.labels, "share": float(share)})
        return pd.DataFrame(rows)

    def chosen(self, alphas: Sequence[float]) -> dict[str, float]:
        """The alpha of each level's full edit, as every notebook of the run has it.

        Args:
            alphas: those that CMRM is tried at.
        """
        plain = sweep.validation(self.nb, self.n)
        strengths = sweep.choose(self.nb, sweep.levels(self.nb, alphas), plain).alphas
        return {level: strengths[f"CMRM {level}"] for level in LEVELS}

    def choose(self, among: Sequence[Variant], alphas: Sequence[float]) -> dict[str, float]:
        """Each variant's alpha by the same rule, on the same samples; 0 is among those tried."""

        def method(variant: Variant) -> Method:
            return by_alpha(lambda *_: partial(self._edit, "validation", variant), alphas)

        methods = {f"ablation, {v.level}: {v.name}": method(v) for v in among}
        chosen = sweep.choose(self.nb, methods, self.trials("validation", None))
        return dict(zip((v.name for v in among), chosen.alphas.values(), strict=True))

    def _edit(self, split: str, variant: Variant, alpha: float) -> Edit:
        vectors = self.vectors(split, variant.level, variant.place)
        part = variant.part(vectors)
        return CMRM(part, alpha, layers=variant.layers, tokens=variant.tokens, name=variant.name)

    def test(
        self, settings: Sequence[Setting] | None, *, harmful: bool = False, **labels: Any
    ) -> pd.DataFrame:
        """Judged trials of the test split, the variants' labels as columns, and further ones.

        Args:
            settings: variants and their alphas; None for no edit.
            harmful: harmful requests alone.
            labels: columns, the same for all.
        """
        rows = self.nb.ask(self.trials("test", settings, harmful=harmful))
        if settings is not None:
            each = len(rows) // len(settings)
            own = pd.DataFrame([v.labels for v, _ in settings for _ in range(each)])
            rows[list(own.columns)] = own
        return rows.assign(**labels)

    def head_effects(self, level: Level, alpha: float = UNDONE) -> pd.DataFrame:
        """What each head's shift, subtracted alone, does to the first token of harmful requests.

        Only requests of the validation split count whose first token differs between text and
        image. The effect is how far the logit of the text's first token rises over that of the
        image's. Where a model refuses the text and obeys with the image, these tokens begin a
        refusal and an answer. Nothing is generated, so every head of a large model can be tried.

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
        text, picture = (
            first_logits(vlm, [Trial(s, image) for s in every]).argmax(-1)
            for image in ("none", "own")
        )
        at = (text != picture).nonzero()[:, 0].tolist()
        vectors = self.vectors("validation", level, "heads")
        sizes = vectors.values.unflatten(-1, (each, vlm.head_size)).norm(dim=-1)
        rows["norm"] = sizes.view(-1, len(heads)).mean(0).numpy()
        if not at:
            return rows.assign(effect=np.nan, low=np.nan, high=np.nan, n=0)

        def margins(part: ShiftVectors | None) -> pd.Series:
            edit = None if part is None else CMRM(part, alpha, tokens="last prompt")
            logits = first_logits(vlm, [Trial(every[i], "own", edit) for i in at])
            own = torch.arange(len(at))
            return pd.Series((logits[own, text[at]] - logits[own, picture[at]]).numpy())

        start = margins(None)
        like = {
            "groups": pd.Series([every[i].group or every[i].id for i in at]),
            "strata": pd.Series([every[i].kind for i in at]),
        }
        rows[["effect", "low", "high"]] = [
            paired_difference(start, margins(vectors.heads([head], vlm.head_size)), **like)
            for head in heads
        ]
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
    table = measures(rows, by)
    start = _refused(reference)
    about = reference.groupby("sample")[["group", "kind"]].first()
    like = {"groups": about["group"], "strata": about["kind"]}
    changes = [
        ("refused", *key, *paired_difference(start, _refused(cell), **like))
        for key, cell in rows[rows["task"] == "harmful"].groupby(list(by), sort=False)
    ]
    names = ["measure", *by, "change", "change_low", "change_high"]
    return table.merge(pd.DataFrame(changes, columns=names), how="left", on=["measure", *by])


def _refused(rows: pd.DataFrame) -> pd.Series:
    harmful = rows[rows["task"] == "harmful"]
    return (harmful["outcome"] == "refused").groupby(harmful["sample"]).mean()


def edit_table(rows: pd.DataFrame, index: list[str]) -> pd.DataFrame:
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


def fewest(curve: pd.DataFrame, rate: float) -> int:
    """How few first heads bring the share refused to ``rate``, each number at its own alpha.

    Args:
        curve: of :func:`compared`, rows of first heads alone, with a column ``k``.
        rate: to be reached.

    Returns:
        A number of heads; 0 where no number does.
    """
    refused = curve[curve["measure"] == "refused"]
    enough = refused.loc[refused["rate"] >= rate, "k"]
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
