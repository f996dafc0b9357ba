import torch

from cmrm_utils.methods.addition import refusal_addition


def test_refusal_addition_is_at_one_layer(vectors):
    edit = refusal_addition(vectors, 1, 1.5)
    torch.testing.assert_close(edit.added[1], 1.5 * vectors.values[1])
    assert not edit.add[[0, 2]].any()
    assert edit.tokens == "all"
    assert edit.settings["alpha"] == 1.5
