"""Tiny random models, made in memory; nothing is downloaded."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from language_models import make_model, make_tokenizer

from cmrm_utils.data import load_samples
from cmrm_utils.models import wrap
from cmrm_utils.organism.recipe import Recipe, build_model, build_processor

TINY = Recipe("tiny", stands_for="nothing", hidden=32, layers=3, heads=2)


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


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory):
    """A tiny language model that can judge and review, saved as a plain checkpoint folder."""
    path = tmp_path_factory.mktemp("judge")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
