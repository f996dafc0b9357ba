from dataclasses import replace

import pytest
import torch

from cmrm_utils import CMRM, InputError, Sample, ShiftVectors, Trial, generate, hidden_states, table
from cmrm_utils.methods.addition import refusal_addition
from cmrm_utils.methods.base import dose
from cmrm_utils.methods.gate import gated
from cmrm_utils.methods.prompting import ECSO, safety_prompt
from cmrm_utils.methods.regap import ReGap
from cmrm_utils.methods.shiftdc import ShiftDC
from cmrm_utils.methods.vlm_guard import VLMGuard
from cmrm_utils.prompts import SAFETY_PROMPT


@pytest.fixture
def vectors():
    return ShiftVectors(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))


def drawn(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def three():
    """Sample-level vectors of three samples."""
    return ShiftVectors(drawn(3, 3, 32, seed=5), ("a", "b", "c"))


def test_subtracts_alpha_times_v(vectors):
    torch.testing.assert_close(CMRM(vectors, 0.5).added, -0.5 * vectors.values)
    some = CMRM(vectors, 2.0, layers=[1]).added
    assert not some[0].any()
    assert not some[2].any()
    torch.testing.assert_close(some[1], -2.0 * vectors.values[1])


def test_settings_become_columns(vectors):
    assert CMRM(vectors, 0.5, tokens="last", layers=[2, 0]).settings == {
        "method": "CMRM dataset",
        "alpha": 0.5,
        "tokens": "last",
        "layers": "0,2",
    }


@pytest.mark.parametrize("layers", ["all", "late"])
def test_a_sweep_holds_its_vectors_once(tiny, requests, layers):
    """Ten alphas share one tensor, also row by row, and say what copies of the products say."""
    vectors = ShiftVectors(drawn(len(requests), 3, 32), tuple(s.id for s in requests))
    edits = [CMRM(vectors, alpha / 5, layers=layers) for alpha in range(1, 11)]
    assert len({edit.add.untyped_storage().data_ptr() for edit in edits}) == 1
    rows = [edit.row(requests[1].id).add for edit in edits]
    assert {row.data_ptr() for row in rows} == {rows[0].data_ptr()}
    assert rows[0].untyped_storage().data_ptr() == edits[0].add.untyped_storage().data_ptr()
    if layers == "all":
        assert edits[0].add is vectors.values
    trials = [Trial(s, "own", edit) for edit in edits for s in requests[:4]]
    copies = [replace(edit, add=edit.added, strength=1.0) for edit in edits]
    copied = [Trial(s, "own", edit) for edit in copies for s in requests[:4]]
    assert [trial.id for trial in trials] == [trial.id for trial in copied]
    assert len({trial.id for trial in trials}) == len(trials)
    assert torch.equal(hidden_states(tiny, trials), hidden_states(tiny, copied))
    said = generate(tiny, trials, max_new_tokens=4)
    assert said == generate(tiny, copied, max_new_tokens=4)
    assert len(set(said)) > 4


def test_vectors_that_change_are_not_taken_as_they_were(vectors):
    before = CMRM(vectors, 1.0, layers=[1])
    vectors.values.mul_(2)
    torch.testing.assert_close(CMRM(vectors, 1.0, layers=[1]).added, 2 * before.added)


def test_sample_level_takes_each_samples_own(tiny, requests):
    values = torch.randn(len(requests), 3, 32, generator=torch.Generator().manual_seed(0))
    vectors = ShiftVectors(values, tuple(s.id for s in requests))
    edit = CMRM(vectors, 1.0)
    for i, sample in enumerate(requests):
        torch.testing.assert_close(Trial(sample, "own", edit).edit.added, -values[i])
    together = generate(tiny, [Trial(s, "own", edit) for s in requests], max_new_tokens=5)
    for i, sample in enumerate(requests):
        own = CMRM(ShiftVectors(values[i]), 1.0)
        assert generate(tiny, [Trial(sample, "own", own)], max_new_tokens=5) == [together[i]]


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alpha_must_be_finite(vectors, alpha):
    with pytest.raises(InputError, match="alpha"):
        CMRM(vectors, alpha)


def test_layers_must_exist(vectors):
    with pytest.raises(InputError, match=r"\[3\]"):
        CMRM(vectors, 1.0, layers=[0, 3])


def test_dose_is_relative_to_the_states(vectors):
    states = 4 * torch.nn.functional.normalize(torch.randn(10, 3, 32), dim=-1)
    found = dose(CMRM(vectors, 0.5), states)
    torch.testing.assert_close(found, 0.5 * vectors.norms / 4)


def test_shiftdc_takes_back_the_safety_part_of_a_samples_own_shift(vectors, three):
    found = ShiftDC(three, vectors, 0.5)
    assert (found.tokens, found.sample_ids) == ("last prompt", three.sample_ids)
    for i, name in enumerate(three.sample_ids):
        for layer in range(3):
            m, s = three.values[i, layer], vectors.values[layer]
            want = -0.5 * (m @ s) / (s @ s) * s if layer >= 1 else torch.zeros(32)
            torch.testing.assert_close(found.row(name).added[layer], want)
    other = ShiftDC(three, vectors.scaled(-3.0), 0.5)
    torch.testing.assert_close(other.added, found.added)  # neither sign nor length of s matters
    assert found.settings == {
        "method": "ShiftDC",
        "alpha": 0.5,
        "tokens": "last prompt",
        "layers": "1,2",
    }


def test_shiftdc_at_one_layer_leaves_the_captions_safety_part(tiny, requests):
    """At the edited layer the state then has the component that it has with the caption."""
    direction = ShiftVectors(drawn(3, 32))
    states = {i: hidden_states(tiny, [Trial(s, i) for s in requests]) for i in ("own", "caption")}
    shift = ShiftVectors(states["own"] - states["caption"], tuple(s.id for s in requests))
    edit = ShiftDC(shift, direction, layers=[1])
    edited = hidden_states(tiny, [Trial(s, "own", edit) for s in requests])
    unit = torch.nn.functional.normalize(direction.values[1], dim=0)
    torch.testing.assert_close(
        edited[:, 1] @ unit, states["caption"][:, 1] @ unit, rtol=1e-4, atol=1e-4
    )
    assert ((edited - states["own"])[:, 1] @ unit).abs().min() > 1e-3


def orthonormal(count):
    return ShiftVectors(torch.linalg.qr(drawn(3, 32, count)).Q.permute(2, 0, 1).contiguous())


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


def test_regap_inspired_strength_is_each_samples(vectors, three):
    refusal = ShiftVectors(drawn(3, 32, seed=8))
    edit = ReGap(vectors, refusal, {"a": 0.0, "b": 0.25, "c": 1.0}, 2.0, first=0.1)
    for name, weight in (("a", 0.0), ("b", 0.25), ("c", 1.0)):
        want = -0.1 * vectors.values + 2.0 * weight * refusal.values
        torch.testing.assert_close(edit.row(name).added, want)
    assert edit.row("a").digest == CMRM(vectors, 0.1, tokens="last").digest
    assert (edit.settings["alpha"], edit.settings["first"]) == (2.0, 0.1)
    assert "inspired" in edit.settings["method"]


def test_refusal_addition_is_at_one_layer(vectors):
    edit = refusal_addition(vectors, 1, 1.5)
    torch.testing.assert_close(edit.added[1], 1.5 * vectors.values[1])
    assert not edit.add[[0, 2]].any()
    assert edit.tokens == "all"
    assert edit.settings["alpha"] == 1.5


def test_a_safety_prompt_comes_first_and_has_a_name_in_tables(tiny, requests):
    trials = safety_prompt([Trial(sample) for sample in requests])
    assert [t.sample.id for t in trials] == [s.id for s in requests]
    assert all(t.text == f"{SAFETY_PROMPT}\n{t.sample.prompt}" for t in trials)
    rows = table(trials, generate(tiny, trials, max_new_tokens=2))
    assert set(rows["method"]) == {"safety prompt"}
    same = Trial(requests[0], "own", prompt=trials[0].text)
    assert trials[0].id == same.id  # the name is no edit


def test_ecso_looks_away_where_the_model_judges_its_answer_harmful(requests):
    asked = []

    def answer(trials):
        asked.append([trial.text for trial in trials])
        return [reply(trial) for trial in trials]

    def reply(trial):
        if "The answer was: " in trial.text:
            return "Yes, it could." if "answer to flood" in trial.text else "No, yes is wrong."
        if trial.text.startswith("Describe"):
            return f"picture for {trial.sample.prompt}"
        return "answer to flood" if trial.sample is requests[1] else "answer"

    plain = [*(Trial(s) for s in requests[:3]), Trial(Sample("bare", "Who?"), "none")]
    trials = ECSO(answer, plain)
    assert [t.image for t in trials] == ["own", "caption", "own", "none"]
    assert [t.sample.id for t in trials] == [t.sample.id for t in plain]
    prompt = requests[1].prompt
    assert trials[1].text == f"Image caption: picture for {prompt}\n{prompt}"
    assert prompt in asked[2][0]  # it is told what the image matters for
    assert trials[0].id == Trial(requests[0], "own").id
    assert len(asked[0]) == len(asked[1]) == 3
    assert len(asked[2]) == 1
    assert trials[1].edit.settings["method"] == "ECSO"


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
