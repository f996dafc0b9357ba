"""Addition of the refusal direction (arXiv 2406.11717)."""

from collections.abc import Sequence

from cmrm_utils.edits import Edit
from cmrm_utils.methods.base import Anchors, Make, Method, adding, each, edited
from cmrm_utils.trials import Trial
from cmrm_utils.vectors import ShiftVectors


def refusal_addition(refusal: ShiftVectors, layer: int, strength: float = 1.0) -> Edit:
    """Add the refusal direction at one layer, all positions and steps (arXiv 2406.11717).

    The paper adds it, not normalised, at the input of a block, and takes it there. Ours is the
    output of a decoder layer, which is the same place by another name: ``layer`` is the block
    before. The paper's choice of layer, on validation, is among the first 80%.

    Args:
        refusal: harmful minus benign (:func:`cmrm_utils.vectors.refusal_direction`).
        layer: at whose output.
        strength: 1 in the paper.
    """
    return adding(refusal, strength, layers=[layer], tokens="all", name="refusal addition")


def _prepare(anchors: Anchors, trials: Sequence[Trial]) -> Make:
    r, count = anchors.refusal(), len(anchors.vlm.layers)

    # The edit adds to a layer's output. At depth 0.67 of six layers that is the input of block 5,
    # one further on than the first 80% of them, in which the method's paper looks for its layer.
    def make(depth: float, strength: float) -> list[Trial]:
        return edited(trials, refusal_addition(r, int(depth * count), strength))

    return make


METHOD = Method(_prepare, each(depth=[0.5], strength=[0.25, 0.5, 1.0]))
