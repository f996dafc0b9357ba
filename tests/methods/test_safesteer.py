import pytest
import torch
from vectors_drawn import drawn, orthonormal

from cmrm_utils import InputError, Trial, hidden_states
from cmrm_utils.methods.base import Anchors
from cmrm_utils.methods.safesteer import (
    METHOD,
    SAFETY_SENTENCE,
    SafeSteer,
    harm_shares,
    sentence_pushes,
)


def test_safesteer_equals_its_rule_by_hand(three):
    """d' = 2 V'Vd + 0.5 (d - V'Vd), relative to |h|, turned by 2p - 1."""
    principal, gates = orthonormal(2), {"a": 1.0, "b": 0.25, "c": 0.5}
    edit = SafeSteer(three, principal, gates, 0.3, layers=[1, 2])
    assert (edit.weight, edit.tokens, edit.strength) == ("norm", "last", 0.3)
    for i, (name, p) in enumerate(gates.items()):
        row = edit.row(name)
        assert not row.add[0].any()
        for layer in (1, 2):
            d = three.values[i, layer].double()
            v = principal.values[:, layer].double()
            along = v.T @ (v @ d)
            pushed = 2 * along + 0.5 * (d - along)
            wanted = (2 * p - 1) * pushed / pushed.norm()
            torch.testing.assert_close(row.add[layer].double(), wanted, rtol=1e-4, atol=1e-5)
    assert edit.row("c").empty  # undecided: nothing is done


def test_a_state_moves_by_alpha_times_its_own_norm(tiny, requests):
    pushes = sentence_pushes(tiny, [Trial(s) for s in requests])
    gates = {s.id: 1.0 for s in requests}
    edit = SafeSteer(pushes, orthonormal(2), gates, 0.3, layers=[1])
    plain, edited = (
        hidden_states(tiny, [Trial(s, edit=e) for s in requests])[:, 1] for e in (None, edit)
    )
    torch.testing.assert_close((edited - plain).norm(dim=-1), 0.3 * plain.norm(dim=-1))


def test_a_push_is_what_the_sentence_does(tiny, requests):
    pushes = sentence_pushes(tiny, [Trial(requests[0], "blank")])
    said = f"{requests[0].prompt} {SAFETY_SENTENCE}"
    after = hidden_states(tiny, [Trial(requests[0], "blank", prompt=said)])
    torch.testing.assert_close(
        pushes.values, after - hidden_states(tiny, [Trial(requests[0], "blank")])
    )
    assert pushes.sample_ids == (requests[0].id,)


def test_the_probe_reads_the_last_layers_alone():
    harmful, harmless = drawn(30, 6, 8), drawn(30, 6, 8, seed=2)
    harmful[:, 5, 0] += 6
    near = torch.zeros(2, 6, 8)
    near[0, 5, 0] = 6
    high, low = harm_shares(harmful, harmless, near)
    assert high > 0.65 > 0.35 > low
    near[1, 1] = 100.0  # a layer that it does not read
    assert harm_shares(harmful, harmless, near)[1] == pytest.approx(low)
    with pytest.raises(InputError, match="gate learns"):
        harm_shares(harmful, harmless[:0], near)


def test_without_its_gate_every_sample_is_pushed_whole(tiny, requests):
    anchors = Anchors(tiny, requests[:2], requests[2:], list)
    make = METHOD.prepare(anchors, [Trial(s) for s in requests])
    ungated, gated = make(gate="none", alpha=0.1), make(gate="published", alpha=0.1)
    size = ungated[0].edit.add.norm(dim=-1)
    assert set(size.round(decimals=4).tolist()) == {0.0, 1.0}
    for whole, part in zip(ungated, gated, strict=True):
        share = float(part.edit.add.norm() / whole.edit.add.norm())
        assert 0 < share < 1
    with pytest.raises(InputError, match="no gate"):
        SafeSteer(sentence_pushes(tiny, [Trial(requests[0])]), orthonormal(1), {}, 1, layers=[0])


def test_what_is_learnt_of_which_anchors(tiny, requests):
    """By hand: V from harmful anchors' pushes, p between harmful and benign ones, middle layers."""
    harmful, benign, trial = requests[:2], requests[2:], Trial(requests[-1], "blank")
    learnt = sentence_pushes(tiny, [Trial(s) for s in harmful]).values.double()
    d = sentence_pushes(tiny, [trial]).values[0].double()
    groups = [[Trial(s) for s in harmful], [Trial(s) for s in benign], [trial]]
    (p,) = harm_shares(*(hidden_states(tiny, these) for these in groups))
    make = METHOD.prepare(Anchors(tiny, harmful, benign, list), [trial])
    (ungated,), (gated,) = (make(gate=gate, alpha=0.1) for gate in ("none", "published"))
    assert ungated.image == "blank"
    assert len(tiny.layers) == 3  # from 0.4 to 0.6 of three is the second
    for layer in range(len(tiny.layers)):
        rows = torch.linalg.svd(learnt[:, layer], full_matrices=False).Vh
        along = rows.T @ (rows @ d[layer])
        pushed = 2 * along + 0.5 * (d[layer] - along)
        wanted = pushed / pushed.norm() if layer == 1 else torch.zeros_like(pushed)
        for edited, share in ((ungated, 1.0), (gated, 2 * p - 1)):
            found = edited.edit.add[layer].double()
            torch.testing.assert_close(found, share * wanted, rtol=1e-3, atol=1e-5)
