"""Cross-Modality Representation Manipulation: the thin module under the notebooks.

Public names are imported on first use, so that `cmrm --help` does not wait for torch.
"""

from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any

from cmrm_utils.errors import InputError
from cmrm_utils.spinning import spin_less

if TYPE_CHECKING:
    from cmrm_utils.data.load import load_samples
    from cmrm_utils.edits import Edit
    from cmrm_utils.engine.loops import first_logits, generate, hidden_states
    from cmrm_utils.hooks import apply, record
    from cmrm_utils.judges.answers import parse_choice, parse_pair_scores
    from cmrm_utils.judges.keywords import is_refusal
    from cmrm_utils.loading import load_vlm
    from cmrm_utils.methods.cmrm import CMRM
    from cmrm_utils.methods.registry import METHODS
    from cmrm_utils.models import VLM
    from cmrm_utils.results.responses import table
    from cmrm_utils.sample import Sample
    from cmrm_utils.trials import Trial, grid
    from cmrm_utils.vectors import ShiftVectors, extract_shift
    from cmrm_utils.weights.bake import bake

spin_less()

_HOMES = {
    "data.load": ("load_samples",),
    "edits": ("Edit",),
    "engine.loops": ("first_logits", "generate", "hidden_states"),
    "hooks": ("apply", "record"),
    "judges.answers": ("parse_choice", "parse_pair_scores"),
    "judges.keywords": ("is_refusal",),
    "loading": ("load_vlm",),
    "methods.cmrm": ("CMRM",),
    "methods.registry": ("METHODS",),
    "models": ("VLM",),
    "sample": ("Sample",),
    "results.responses": ("table",),
    "trials": ("Trial", "grid"),
    "vectors": ("ShiftVectors", "extract_shift"),
    "weights.bake": ("bake",),
}

__all__ = sorted(["InputError", *chain.from_iterable(_HOMES.values())])


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"cmrm_utils.{module}"), name)
    raise AttributeError(f"module 'cmrm_utils' has no attribute {name!r}")
