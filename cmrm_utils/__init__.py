"""Cross-Modality Representation Manipulation: the thin module under the notebooks."""

from cmrm_utils.data import Sample, load_samples
from cmrm_utils.engine import generate, hidden_states
from cmrm_utils.errors import InputError
from cmrm_utils.hooks import Edit, apply, record
from cmrm_utils.judges import is_refusal, parse_choice, parse_pair_scores
from cmrm_utils.methods import CMRM
from cmrm_utils.models import VLM, load_vlm
from cmrm_utils.trials import Trial, table
from cmrm_utils.vectors import ShiftVectors, extract_shift

__all__ = [
    "CMRM",
    "VLM",
    "Edit",
    "InputError",
    "Sample",
    "ShiftVectors",
    "Trial",
    "apply",
    "extract_shift",
    "generate",
    "hidden_states",
    "is_refusal",
    "load_samples",
    "load_vlm",
    "parse_choice",
    "parse_pair_scores",
    "record",
    "table",
]
