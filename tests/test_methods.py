import pytest
import torch

from cmrm_utils import CMRM, InputError, ShiftVectors, Trial, generate
from cmrm_utils.methods import dose


@pytest.fixture
def vectors():
    return ShiftVectors(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))


def test_subtracts_alpha_times_v(vectors):
    torch.testing.assert_close(CMRM(vectors, 0.5).add, -0.5 * vectors.values)
    some = CMRM(vectors, 2.0, layers=[1]).add
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


def test_sample_level_takes_each_samples_own(tiny, requests):
    values = torch.randn(len(requests), 3, 32, generator=torch.Generator().manual_seed(0))
    vectors = ShiftVectors(values, tuple(s.id for s in requests))
    edit = CMRM(vectors, 1.0)
    for i, sample in enumerate(requests):
        torch.testing.assert_close(Trial(sample, "own", edit).edit.add, -values[i])
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
