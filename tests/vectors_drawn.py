"""Random vectors of the shape of a tiny model's."""

import torch

from cmrm_utils import ShiftVectors


def drawn(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def orthonormal(count):
    return ShiftVectors(torch.linalg.qr(drawn(3, 32, count)).Q.permute(2, 0, 1).contiguous())
