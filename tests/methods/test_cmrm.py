from dataclasses import replace

import pytest
import torch
from vectors_drawn import drawn

from cmrm_utils import CMRM, InputError, ShiftVectors, Trial, generate, hidden_states
from cmrm_utils.methods.base import dose


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
