import pytest
import torch
from vectors_drawn import orthonormal

from cmrm_utils import ShiftVectors, Trial, generate, hidden_states
from cmrm_utils.methods.vlm_guard import VLMGuard


@pytest.mark.parametrize("ungated", ["projected", "left"])
def test_vlm_guard_puts_the_querys_own_part_back_where_it_points_to_harm(tiny, requests, ungated):
    """Recomputed at the first layer edited; both sides of the gate occur."""
    directions = orthonormal(2)
    states = hidden_states(tiny, [Trial(s, "none") for s in requests])
    readings = ShiftVectors(states, tuple(s.id for s in requests))
    edit = VLMGuard(directions, readings, 0.7, ungated=ungated, layers=[1])
    found = hidden_states(tiny, [Trial(s, "own", edit) for s in requests])[:, 1]
    plain = hidden_states(tiny, [Trial(s, "own") for s in requests])[:, 1]
    gates = set()
    for h, q, got in zip(plain, states[:, 1], found, strict=True):
        on = bool(q @ directions.values[0, 1] > 0)
        gates.add(on)
        want = h.clone()
        for direction in directions.values[:, 1]:
            if on or ungated == "projected":
                want += (on * 0.7 * (q @ direction) - h @ direction) * direction
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert gates == {True, False}
    alone = [Trial(s, "own", edit) for s in requests]
    assert generate(tiny, alone, max_new_tokens=4) == [
        generate(tiny, [trial], max_new_tokens=4)[0] for trial in alone
    ]


def test_vlm_guard_with_alpha_0_takes_out_and_puts_nothing_back(three):
    edit = VLMGuard(orthonormal(2), three, 0.0, layers=[0, 2])
    assert not edit.add.any()
    assert not edit.empty
    assert not edit.project[1].any()
    torch.testing.assert_close(edit.project[[0, 2]].norm(dim=-1), torch.ones(2, 2))
