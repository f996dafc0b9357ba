from dataclasses import replace

import numpy as np
import pytest
import torch
from vectors_drawn import orthonormal

from cmrm_utils import CMRM, InputError, Trial, hidden_states
from cmrm_utils.methods.gate import REFUSAL_WORDS, fit_detector, fit_gate, gated, refusal_lens
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
    assert gate.layers == (1,)
    assert all(gate.on(harmful))
    assert not any(gate.on(harmless))
    new = states(50, 2)
    new[::2, 1, 2] += 9
    on = gate.on(new)
    assert all(on[::2])
    assert not any(on[1::2])
    assert fit_gate(harmful, harmless, "neighbours").layers == (1,)


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
    assert fit_gate(harmful, harmless, "probe").layers == (2,)


def test_neighbours_are_a_majority_of_five_by_angle():
    """Lengths do not count; of equally many known states of each side the five nearest vote."""
    angles = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]

    def at(some):
        return torch.tensor([[[np.cos(x), np.sin(x)]] for x in some], dtype=torch.float32)

    harmful, harmless = at(angles), at([1.0 + x for x in angles] + [0.2] * 9)
    gate = fit_gate(harmful, harmless, "neighbours")
    # Of the six harmless that count, 1.0 to 1.5: at 0.7 three of the nearest five are harmful.
    assert gate.on(3 * at([0.7, 0.8])) == [True, False]


def test_the_lens_is_the_cosine_of_the_final_logits_by_hand(tiny, requests):
    states = hidden_states(tiny, [Trial(requests[0])])
    lens = refusal_lens(tiny)(states)
    assert lens.shape == states.shape[:2]
    core = tiny.model.model.language_model
    logits = tiny.model.lm_head(core.norm(states[0, 1])).detach().double()
    firsts = {
        tiny.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]
        for word in REFUSAL_WORDS
    }
    aim = torch.zeros_like(logits)
    aim[list(firsts)] = 1
    wanted = float(logits @ aim / (logits.norm() * aim.norm()))
    assert float(lens[0, 1]) == pytest.approx(wanted, abs=1e-5)
    # At the last layer it reads what the model says next.
    says = tiny.model(**tiny.inputs([requests[0].prompt], [requests[0].load_image()])).logits
    torch.testing.assert_close(
        tiny.model.lm_head(core.norm(states[0, -1])), says[0, -1], rtol=1e-3, atol=1e-4
    )


def test_the_detector_takes_the_area_where_examples_differ_most():
    """By hand: the lens reads the first coordinate; layers 1 to 3 of five exceed the last."""
    rises = torch.tensor([0.1, 0.5, 0.2, 0.6, 0.3])
    harmful, harmless = torch.zeros(4, 5, 2), torch.zeros(4, 5, 2)
    harmful[..., 0] = rises
    gate = fit_detector(harmful, harmless, lambda states: states[..., 0])
    assert gate.layers == (1, 2, 3)
    area = (0.5 + 0.2) / 2 + (0.2 + 0.6) / 2
    near = torch.zeros(2, 5, 2)
    near[0, 1:4, 0], near[1, 1:4, 0] = 0.26 * area, 0.24 * area
    # A level c has the area 2 c over three layers; the threshold is half of the harmful one.
    torch.testing.assert_close(gate.score(near), torch.tensor([0.02, -0.02]) * area)
    assert gate.on(near) == [True, False]
    with pytest.raises(InputError, match="examples"):
        fit_detector(harmful[:0], harmless, lambda states: states[..., 0])


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
