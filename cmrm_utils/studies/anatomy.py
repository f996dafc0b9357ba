"""What the shift vector is made of, and whether a sample's own shift tells what becomes of it."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from cmrm_utils.edits import Edit
from cmrm_utils.engine.loops import hidden_states
from cmrm_utils.methods.base import edited
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.methods.prompting import captioned
from cmrm_utils.methods.regap import text_mean, towards_harm
from cmrm_utils.methods.shiftdc import caption_after, caption_safety
from cmrm_utils.results.display import Answers
from cmrm_utils.results.intervals import area_under_curve
from cmrm_utils.results.rates import carried_out, measures, rates, utility
from cmrm_utils.studies import sweep
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.trials import Trial, grid
from cmrm_utils.vectors import ShiftVectors


def parts(nb: Notebook) -> dict[str, ShiftVectors]:
    """What the shift vector v is made of, at v's norm, layer by layer.

    v is taken on harmful anchors and b on benign ones: what any request has in common, so that
    v - b is what harmful anchors add. The refusal direction (text only) is turned round, since an
    edit subtracts. v's refusal part lies along it and alone keeps the size that it has in v.
    """
    v, r = nb.anchors.shift(), nb.anchors.refusal()
    b = nb.shift(nb.anchors.benign, "benign_blank")
    added = v.minus(b)
    vectors = {
        "v without refusal": v.without(r),
        "refusal direction": r.scaled(-1.0),
        "b (benign anchors)": b,
        "b without refusal": b.without(r),
        "v - b": added,
        "v - b without refusal": added.without(r),
        "random": v.random(0),
    }
    equal = {name: part.scaled_like(v) for name, part in vectors.items()}
    return {"v": v, **equal, "refusal part, size as in v": v.only(r)}


def part_trials(nb: Notebook, n: int | None, alphas: Sequence[float]) -> list[Trial]:
    """The validation split under every one of :func:`parts` at every alpha."""
    plain = sweep.validation(nb, n)
    edits = [CMRM(part, a, name=name) for name, part in parts(nb).items() for a in alphas if a]
    return [trial for edit in edits for trial in edited(plain, edit)]


def part_table(nb: Notebook, n: int | None, alphas: Sequence[float]) -> pd.DataFrame:
    """What every part does at v's dose: rates, and where it leaves the states.

    Returns:
        ``measure, part, alpha, rate, low, high, hits, n``, alpha 0 among them. Two measures are
        of the mean state of harmful requests with their images, averaged over layers: ``distance
        from text`` as a share of the unedited one, and ``harm regained``, how far it has come
        from benign (0) to harmful text (1), both as ``rate``.
    """
    rows = nb.ask(part_trials(nb, n, alphas)).rename(columns={"method": "part"})
    start = nb.ask(sweep.validation(nb, n))
    every = pd.concat([*(start.assign(part=name) for name in parts(nb)), rows])
    by = ["part", "alpha"]
    tables = [measures(every, by), utility(every, by), _moved(nb, n, alphas)]
    return pd.concat(tables, ignore_index=True).astype({"hits": "Int64", "n": "Int64"})


def _moved(nb: Notebook, n: int | None, alphas: Sequence[float]) -> pd.DataFrame:
    samples = [trial.sample for trial in sweep.validation(nb, n)]
    harmful = [s for s in samples if s.task == "harmful" and s.image is not None]
    kinds = (nb.anchors.harmful, nb.anchors.benign)
    means = [text_mean(nb.vlm, these) for these in kinds]
    text = hidden_states(nb.vlm, grid(harmful, images=["none"])).mean(0)

    def read(edit: Edit | None) -> tuple[np.ndarray, float]:
        state = hidden_states(nb.vlm, grid(harmful, edits=[edit])).mean(0)
        return (state - text).norm(dim=-1).numpy(), float(towards_harm(state, *means).mean())

    start = read(None)
    rows = []
    for name, part in parts(nb).items():
        at = {0.0: start, **{alpha: read(CMRM(part, alpha)) for alpha in alphas if alpha}}
        for alpha, (distance, along) in at.items():
            share = float((distance / start[0]).mean())
            rows.append(("distance from text", name, alpha, share))
            rows.append(("harm regained", name, alpha, along))
    return pd.DataFrame(rows, columns=["measure", "part", "alpha", "rate"])


def directions(nb: Notebook) -> pd.DataFrame:
    """Cosines of v and of its parts with the refusal direction turned round, and with each other.

    Returns:
        ``pair, layer, cosine``.
    """
    vectors = parts(nb)
    safety, v, common = vectors["refusal direction"], vectors["v"], vectors["b (benign anchors)"]
    cosines = {
        "v and safety": v.cosine(safety),
        "b and safety": common.cosine(safety),
        "v - b and safety": vectors["v - b"].cosine(safety),
        "v and b": v.cosine(common),
    }
    rows = [(pair, *at) for pair, values in cosines.items() for at in enumerate(values.tolist())]
    return pd.DataFrame(rows, columns=["pair", "layer", "cosine"])


def shift_trials(nb: Notebook, n: int | None) -> list[Trial]:
    """Harmful requests of the test split in every image condition but text only."""
    harmful = [s for s in sweep.samples_tested(nb, n, unseen=False) if s.harmful]
    return grid(harmful, images=[image for image in nb.conditions if image != "none"])


def sample_cosines(nb: Notebook, n: int | None) -> pd.DataFrame:
    """Each harmful request's own shift beside what became of it: ShiftDC's key figure.

    Every image condition gives a shift from text only. The own image gives a second one, from the
    model's caption of it, which is ShiftDC's shift. The cosine is that with ShiftDC's safety
    direction (benign minus harmful anchors, their images in captions). It is the mean over the
    later half of the layers, which ShiftDC edits.

    Returns:
        Judged trials with ``shift, cosine``.
    """
    trials = shift_trials(nb, n)
    rows = nb.ask(trials)
    told = partial(captioned, respond=nb.responses)
    kinds = (nb.anchors.harmful, nb.anchors.benign)
    safety = caption_safety(nb.vlm, *map(told, kinds), path=nb.anchors.path("shiftdc_safety"))
    late = slice(len(nb.vlm.layers) // 2, None)

    def cosines(base: Sequence[Trial]) -> list[float]:
        moved = hidden_states(nb.vlm, trials) - hidden_states(nb.vlm, base)
        return ShiftVectors(moved).cosine(safety)[:, late].mean(-1).tolist()

    plain = [Trial(trial.sample, "none") for trial in trials]
    tables = [rows.assign(shift="shift from text only", cosine=cosines(plain))]
    trials = [trial for trial in trials if trial.image == "own"]
    own_words = told([trial.sample for trial in trials])
    described = [Trial(s, "none", prompt=caption_after(s)) for s in own_words]
    own = rows[rows["image"] == "own"]
    tables.append(own.assign(shift="shift from the caption", cosine=cosines(described)))
    return pd.concat(tables, ignore_index=True)


def cosine_table(rows: pd.DataFrame, *, bins: int = 5, draws: int = 200) -> pd.DataFrame:
    """Rates by cosine, in bins of as many samples each, and how well it tells samples apart.

    Args:
        rows: of :func:`sample_cosines`.
        bins: how many.
        draws: bootstrap draws, of groups, for the interval of the area.

    Returns:
        ``measure`` (``not refused``, and the part of it that :func:`.carried_out` names), ``kind``
        (``all``, and each apart), ``shift, image, cosine`` (the bin's mean), ``rate, low, high,
        hits, n``, and of all bins together ``auc, auc_low, auc_high``: how often a request that
        counts has the larger cosine than one that does not; missing where all count or none.
    """
    apart = [rows.assign(among=rows["kind"])] if rows["kind"].nunique() > 1 else []
    every = pd.concat([rows.assign(among="all"), *apart])
    outcome = every["outcome"]
    hits = {"not refused": outcome != "refused", carried_out(rows): outcome == "complied"}
    long = pd.concat([every.assign(measure=name, hit=hit) for name, hit in hits.items()])
    by, area = ["measure", "kind", "shift", "image"], ["auc", "auc_low", "auc_high"]
    tables = []
    for cell, these in long.groupby(["measure", "among", "shift", "image"], sort=False):
        at = pd.qcut(these["cosine"].rank(method="first"), min(bins, len(these)), labels=False)
        table = rates(these.assign(bin=at), "hit", ["bin"]).sort_values("bin")
        table["cosine"] = these.groupby(at)["cosine"].mean().to_numpy()
        table[by] = cell
        table[area] = area_under_curve(these, draws)
        tables.append(table)
    names = [*by, "cosine", "rate", "low", "high", "hits", "n", *area]
    return pd.concat(tables, ignore_index=True)[names]


def predictions(ablated: pd.DataFrame, tried: pd.DataFrame) -> Answers:
    """The answers to what notebook 07 asks its reader to predict.

    Args:
        ablated: :func:`.measures` with directions taken out, by ``taken out``.
        tried: of :func:`cmrm_utils.studies.frontier.frontier`.
    """
    left = ablated[ablated["measure"] == "refused"].set_index("taken out")["rate"]
    plain, without = left["nothing"], left["refusal direction"]
    most = tried["alpha"].max()
    end = tried[tried["alpha"] == most].set_index("part")
    v, spared, push = (end.loc[n] for n in ("v", "v without refusal", "refusal direction"))
    return Answers(
        {
            "1. Do at least half of the refusals go when the refusal direction is taken out?": (
                without <= plain / 2,
                f"Refused {plain:.1%} with nothing taken out, {without:.1%} without it.",
            ),
            "2. Does v at the largest alpha refuse as many twins as the refusal direction?": (
                v["twins"] >= push["twins"],
                f"At alpha {most:g} v refuses {v['twins']:.1%} of the twins, the refusal "
                f"direction {push['twins']:.1%}.",
            ),
            "3. Does v refuse fewer harmful requests there without its refusal component?": (
                spared["refused"] < v["refused"],
                f"With it {v['refused']:.1%} are refused, without it {spared['refused']:.1%}.",
            ),
        }
    )
