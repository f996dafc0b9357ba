import torch
from vectors_drawn import drawn

from cmrm_utils import CMRM, ShiftVectors
from cmrm_utils.methods.regap import ReGap


def test_regap_inspired_strength_is_each_samples(vectors, three):
    refusal = ShiftVectors(drawn(3, 32, seed=8))
    edit = ReGap(vectors, refusal, {"a": 0.0, "b": 0.25, "c": 1.0}, 2.0, first=0.1)
    for name, weight in (("a", 0.0), ("b", 0.25), ("c", 1.0)):
        want = -0.1 * vectors.values + 2.0 * weight * refusal.values
        torch.testing.assert_close(edit.row(name).added, want)
    assert edit.row("a").digest == CMRM(vectors, 0.1, tokens="last").digest
    assert (edit.settings["alpha"], edit.settings["first"]) == (2.0, 0.1)
    assert "inspired" in edit.settings["method"]
