"""Tiny random models, made in memory; nothing is downloaded."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", str(Path(tempfile.gettempdir()) / "cmrm-test-tables"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from cmrm_utils.data import load_samples
from cmrm_utils.models import wrap
from cmrm_utils.organism.recipe import Recipe, build_model, build_processor

TINY = Recipe("tiny", stands_for="nothing", hidden=32, layers=3, heads=2)


FIXTURES = Path(__file__).parent / "fixtures"
"""A folder of all data in small: local copies of every public set, and COCO images."""


@pytest.fixture
def home(tmp_path):
    """A copy of the fixtures that a test may break."""
    return shutil.copytree(FIXTURES, tmp_path / "data")


@pytest.fixture(scope="session")
def processor():
    return build_processor(0)


def make_tiny(processor, seed=0):
    model = build_model(TINY, processor, seed)
    # Default initialisation is so small that every edit and image drowns; make states matter.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return wrap(model, processor, name="tiny")


@pytest.fixture(scope="session")
def tiny(processor):
    return make_tiny(processor)


@pytest.fixture
def fresh(processor):
    """A tiny model that a test may break."""
    return make_tiny(processor, seed=1)


@pytest.fixture(scope="session")
def samples():
    """A few validation samples: requests with images, questions, choices."""
    every = load_samples("organism", "validation")
    kinds = ("harmful", "benign", "colour", "choice", "fact")
    return [s for kind in kinds for s in [s for s in every if s.kind == kind][:4]]


@pytest.fixture(scope="session")
def requests(samples):
    return [s for s in samples if s.kind in ("harmful", "benign")]
