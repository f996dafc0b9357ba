import pytest
import torch
from vectors_drawn import drawn

from cmrm_utils import ShiftVectors


@pytest.fixture
def vectors():
    return ShiftVectors(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def three():
    """Sample-level vectors of three samples."""
    return ShiftVectors(drawn(3, 3, 32, seed=5), ("a", "b", "c"))
