"""Addition of the refusal direction (arXiv 2406.11717)."""

from cmrm_utils.edits import Edit
from cmrm_utils.methods.base import adding
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
