"""Notebook 08: which part of the shift matters, told at the first response token.

The full edit stands beside edits that differ from it in one thing.
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from cmrm_utils.edits import Edit, Place
from cmrm_utils.methods.base import edited
from cmrm_utils.methods.cmrm import CMRM
from cmrm_utils.studies.first_token import FirstTokens
from cmrm_utils.studies.variants import Head, Variant, head_variants, rank_variants
from cmrm_utils.vectors import ShiftVectors, principal_directions


class Ablations(FirstTokens):
    """Variants of dataset-level CMRM, beside no edit."""

    def vectors(self, place: Place) -> ShiftVectors:
        """The harmful anchors' shift at a place (:data:`cmrm_utils.edits.PLACES`)."""
        name = "harmful_blank" if place == "layer" else f"harmful_blank_{place}"
        return self.nb.shift(self.nb.anchors.harmful, name, place=place)

    def effects(self, variants: Sequence[Variant], alpha: float) -> pd.DataFrame:
        """What each variant changes, at one alpha.

        Args:
            variants: of one section, which have the same labels.
            alpha: of all of them.

        Returns:
            ``variant``, its labels, ``alpha``, and the columns of :meth:`FirstTokens.changes`.
        """
        changes = self.changes([edited(self.trials, self.edit(v, alpha)) for v in variants])
        return pd.DataFrame(
            [
                {"variant": variant.name, **variant.labels, "alpha": alpha, **row}
                for variant, rows in zip(variants, changes, strict=True)
                for row in rows
            ]
        )

    def edit(self, variant: Variant, alpha: float) -> Edit:
        """A variant as an edit."""
        part = variant.part(self.vectors(variant.place))
        return CMRM(part, alpha, layers=variant.layers, tokens=variant.tokens, name=variant.name)

    def head_ranking(self, n: int | None) -> pd.DataFrame:
        """What undoing each head's shift alone (alpha 1) does to the first measure there is.

        Args:
            n: validation samples of each kind.

        Returns:
            ``layer, head, change, low, high, norm``: the mean rise in nats, the greatest first,
            and the length of the head's shift.
        """
        vlm, vectors = self.nb.vlm, self.vectors("heads")
        each = vlm.width("heads") // vlm.head_size
        heads = [(layer, head) for layer in range(len(vlm.layers)) for head in range(each)]
        first = Ablations(self.nb, n, "validation", self.measures[:1])
        rows = first.effects(head_variants(vlm, heads), 1.0)
        sizes = vectors.values.unflatten(-1, (each, vlm.head_size)).norm(dim=-1)
        columns = ["layer", "head", "change", "low", "high", "norm"]
        rows = rows.assign(norm=sizes.flatten().tolist())[columns]
        return rows.sort_values("change", ascending=False, ignore_index=True)

    def ranks(self, counts: Iterable[int]) -> list[Variant]:
        """:func:`.variants.rank_variants` of the anchors' components, of as many as there are."""
        anchors = self.nb.anchors.harmful
        most = min(len(anchors), self.nb.vlm.hidden_size)
        few = [count for count in counts if count <= most]
        return rank_variants(principal_directions(self.nb.vlm, anchors, max(few)), few)


def ordered(ranking: pd.DataFrame) -> list[Head]:
    """The heads of :meth:`Ablations.head_ranking`, the greatest effect first."""
    return list(zip(ranking["layer"].tolist(), ranking["head"].tolist(), strict=True))
