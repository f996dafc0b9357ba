"""CMRM (arXiv 2410.09047), at its three levels."""

from collections.abc import Callable, Sequence

from cmrm_utils.edits import Edit, Tokens
from cmrm_utils.methods.base import Anchors, Layers, Method, adding, by_alpha, edited
from cmrm_utils.sample import Sample
from cmrm_utils.vectors import ShiftVectors, extract_shift

ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)
"""What CMRM is tried at unless other alphas are asked for."""


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
    return adding(vectors, alpha, layers=layers, tokens=tokens, name=name, sign=-1)


def _level(name: str, vectors: Callable[[Anchors, Sequence[Sample]], ShiftVectors]) -> Method:
    """CMRM with the vectors that a function takes of the anchors and the samples to be edited."""

    def fit(anchors: Anchors, samples: Sequence[Sample]) -> Callable[[float], Edit]:
        v = vectors(anchors, samples)
        return lambda alpha: CMRM(v, alpha, name=name)

    return by_alpha(fit, ALPHAS)


LEVELS = {
    "CMRM dataset": _level("CMRM dataset", lambda anchors, _: anchors.shift()),
    "CMRM incremental": _level("CMRM incremental", lambda anchors, _: anchors.shift().increments()),
    "CMRM sample": _level(
        "CMRM sample", lambda anchors, these: extract_shift(anchors.vlm, these, level="sample")
    ),
}
"""One v for all samples, each layer's own share of it, and each sample's own v."""


PUBLISHED = Method(
    lambda anchors, trials: lambda: edited(trials, CMRM(anchors.shift(), 1.0, name="CMRM")), [{}]
)
"""Dataset level at alpha 1, as in the paper's table of utility; raw means are our reading of it."""
