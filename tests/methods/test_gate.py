from dataclasses import replace

import pytest
import torch
from vectors_drawn import orthonormal

from cmrm_utils import CMRM, InputError
from cmrm_utils.methods.gate import fit_gate, gated
from cmrm_utils.methods.vlm_guard import VLMGuard


def states(count, seed, layers=3, hidden=6):
    return torch.randn(count, layers, hidden, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def sides():
    """Told apart at layer 1 alone, along the third coordinate."""
    harmful, harmless = states(40, 0), states(60, 1)
    harmful[:, 1, 2] += 9
    return harmful, harmless


@pytest.mark.parametrize("how", ["mean", "probe"])
def test_reads_the_layer_that_tells_them_apart(sides, how):
    harmful, harmless = sides
    gate = fit_gate(harmful, harmless, how)
    assert gate.layer == 1
    assert all(gate.on(harmful))
    assert not any(gate.on(harmless))
    assert torch.nn.functional.normalize(gate.direction, dim=0)[2] > 0.7
    new = states(50, 2)
    new[::2, 1, 2] += 9
    on = gate.on(new)
    assert all(on[::2])
    assert not any(on[1::2])


def test_mean_is_half_way(sides):
    harmful, harmless = sides
    gate = fit_gate(harmful, harmless)
    high, low = harmful[:, 1].mean(0), harmless[:, 1].mean(0)
    for share, is_on in ((0.45, False), (0.55, True)):
        point = torch.zeros(1, 3, 6)
        point[0, 1] = low + share * (high - low)
        assert gate.on(point) == [is_on]


def test_probe_weighs_both_sides_alike_and_undoes_its_scaling(sides):
    """Coordinates of other scales, and few harmful ones: still in between."""
    harmful, harmless = sides
    scale = torch.tensor([1.0, 1.0, 50.0, 1.0, 1.0, 1.0])
    gate = fit_gate(harmful[:6] * scale + 7, harmless * scale + 7, "probe")
    assert all(gate.on(harmful * scale + 7))
    assert not any(gate.on(harmless * scale + 7))


def test_the_layer_is_chosen_on_states_left_out():
    """A layer that fits its own half by chance loses against one that holds on the other."""
    harmful, harmless = states(20, 3, hidden=40), states(20, 4, hidden=40)
    harmful[:, 2, 0] += 4
    assert fit_gate(harmful, harmless, "probe").layer == 2


def test_needs_two_of_each():
    with pytest.raises(InputError, match="two states"):
        fit_gate(states(1, 0), states(5, 1))


def test_a_gate_leaves_the_edit_or_nothing(vectors, three):
    on = {"a": True, "b": False, "c": True}
    whole = CMRM(vectors, 0.5, tokens="last")
    edit = gated(whole, on, name="gate")
    assert edit.tokens == "last"
    assert edit.settings == {**whole.settings, "method": "gate"}
    for name, is_on in on.items():
        assert edit.row(name).digest == (whole.digest if is_on else "none")
    own = gated(CMRM(three, 0.5), {"c": True, "b": False}, name="gate")
    assert own.row("c").digest == CMRM(three, 0.5).row("c").digest
    assert own.row("b").empty
    with pytest.raises(InputError, match="'d'"):
        gated(CMRM(three, 0.5), {"d": True}, name="gate")


def test_a_gate_keeps_the_edits_place(vectors):
    """A vector of the MLPs' outputs is as wide as one of the layers'; it must not become one."""
    at_mlps = replace(vectors, provenance={**vectors.provenance, "place": "mlp"})
    whole = CMRM(at_mlps, 0.5)
    found = gated(whole, {"a": True, "b": False}, name="gate")
    assert found.place == "mlp"
    assert found.row("a").digest == whole.digest


def test_a_gate_takes_a_projection_with_it(three):
    edit = VLMGuard(orthonormal(2), three, 0.7)
    found = gated(edit, {"a": True, "b": False}, name="gate")
    assert found.row("a").digest == edit.row("a").digest
    assert found.row("b").empty
