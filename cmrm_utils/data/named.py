"""All data that has a name: the project's own sets, and the public ones."""

from collections.abc import Callable, Mapping, Sequence

from cmrm_utils.data.everyday import everyday_samples
from cmrm_utils.data.sets import SETS, find_set
from cmrm_utils.data.stand_ins import requests_beside_scenes
from cmrm_utils.organism.samples import extended_samples, organism_samples
from cmrm_utils.sample import Sample

OWN: Mapping[str, Callable[[str], Sequence[Sample]]] = {
    "everyday": everyday_samples,
    "organism": organism_samples,
    "organism-extended": extended_samples,
    "requests-beside-scenes": requests_beside_scenes,
}
"""The project's own sets: a function each that gives the samples of a split."""

DATASETS = (*OWN, *SETS)
"""Named sets."""


def is_named(part: str) -> bool:
    """Whether a part of a data name means a named set, perhaps at a revision of its own."""
    return part in OWN or find_set(part) is not None
