"""CMRM (arXiv 2410.09047)."""

from cmrm_utils.edits import Edit, Tokens
from cmrm_utils.methods.base import Layers, adding
from cmrm_utils.vectors import ShiftVectors


def CMRM(
    vectors: ShiftVectors,
    alpha: float,
    *,
    layers: Layers = "all",
    tokens: Tokens = "all",
    name: str | None = None,
) -> Edit:
    """Cross-Modality Representation Manipulation: ``h - alpha * v`` at each chosen layer.

    Example:
        >>> v = ShiftVectors(torch.ones(4, 8))
        >>> edit = CMRM(v, 0.3, layers="late")
        >>> edit.strength, edit.settings["layers"]
        (-0.3, '2,3')

    Args:
        vectors: the shift v (arXiv 2410.09047, Eq. 6 with its sign mended); where it was taken at
            heads or MLPs, it is subtracted there.
        alpha: strength; 0 is no edit.
        layers: decoder layers to edit.
        tokens: which tokens (:class:`Edit`).
        name: what tables call it; by default ``CMRM dataset`` or ``CMRM sample``.

    Raises:
        InputError: an alpha that is not finite, or a layer that the vectors do not have.
    """
    name = name or f"CMRM {vectors.level}"
    return adding(vectors, alpha, layers=layers, tokens=tokens, name=name, sign=-1.0)
