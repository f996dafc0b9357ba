"""Tiny random models, made in memory; nothing is downloaded."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

import cmrm_utils  # noqa: F401  # before torch: it sets how torch's threads wait

if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import models_page
import torch

if find_spec("torchvision") is not None:
    # A wheel that was built for another torch loads once the operators that it asks for are
    # declared. Resizing needs none of them.
    declared = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision
    except RuntimeError:
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")
        import torchvision  # noqa: F401

from families import FAMILIES, TINY, shake, write_family
from language_models import make_model, make_tokenizer

from cmrm_utils.data.load import load_samples
from cmrm_utils.edits import Edit
from cmrm_utils.loading import load_vlm, wrap
from cmrm_utils.organism.recipe import build_model, build_processor
from cmrm_utils.organism.world import Request
from cmrm_utils.trials import Trial

pytest.register_assert_rewrite("regression")


def pytest_addoption(parser):
    parser.addoption("--write-models", action="store_true", help="write docs/models.md's table")


def pytest_configure(config):
    config.told = {}
    if config.getoption("--write-models") and "PYTEST_XDIST_WORKER" in os.environ:
        raise pytest.UsageError("--write-models needs a single process: leave -n out")


def pytest_sessionfinish(session, exitstatus):
    if session.config.getoption("--write-models") and exitstatus == 0:
        models_page.write(session.config.told)


@pytest.fixture
def tell(request):
    """Say what was found of a family; it must be what docs/models.md says."""

    def told(family, column, text):
        if request.config.getoption("--write-models"):
            request.config.told[family, column] = text
        else:
            assert models_page.read()[family][column] == text

    return told


FIXTURES = Path(__file__).parent / "fixtures"
"""A folder of all data in small: local copies of every public set, and COCO images."""


def pytest_collection_modifyitems(items):
    """Executed notebooks take longest, so they begin."""
    items.sort(key=lambda item: not item.path.stem.startswith("test_nbval"))


@pytest.fixture(scope="session", autouse=True)
def checks(tmp_path_factory):
    """Where reports of models' checks are kept, instead of the user's own folder."""
    place = tmp_path_factory.mktemp("checks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmrm_utils.checks.model.cache_home", lambda: place)
        yield place


@pytest.fixture
def home(tmp_path):
    """A copy of the fixtures that a test may break."""
    return shutil.copytree(FIXTURES, tmp_path / "data")


@pytest.fixture(scope="session")
def processor():
    return build_processor(TINY, 0)


def make_tiny(processor, seed=0):
    return wrap(shake(build_model(TINY, processor, seed), seed), processor, name="tiny")


@pytest.fixture(scope="session")
def family_folders(processor, tmp_path_factory):
    """A tiny checkpoint of each model family."""
    place = tmp_path_factory.mktemp("families")
    return {name: write_family(name, processor, place / name) for name in FAMILIES}


@pytest.fixture(scope="session")
def families(family_folders):
    """Each family as :func:`load_vlm` loads it."""
    return {name: load_vlm(folder) for name, folder in family_folders.items()}


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


BURN, WARM = Request("burn", "kettle"), Request("warm", "lamp")


@pytest.fixture
def judged_run(tmp_path):
    """A run folder with the table of responses that notebook 04 leaves."""
    answers = [
        ("own image", BURN, BURN.steps, "complied", "complied"),
        ("CMRM", BURN, BURN.refusal, "refused", "refused"),
        ("text only", BURN, BURN.refusal, "refused", "refused"),
        ("CMRM", WARM, "I can't do that.", "neither", "refused"),
        ("own image", WARM, WARM.steps, "complied", "complied"),
    ]
    rows = [
        {
            "trial": f"t{i}",
            "sample": request.verb,
            "kind": request.kind,
            "task": "harmful" if request.harmful else "benign",
            "setting": setting,
            "query": request.query,
            "response": response,
            "outcome": exact,
            "exact": exact,
            "keyword": keyword,
        }
        for i, (setting, request, response, exact, keyword) in enumerate(answers)
    ]
    question = {**rows[0], "trial": "t9", "task": "visual", "exact": None, "outcome": "complied"}
    folder = tmp_path / "judged"
    (folder / "tables").mkdir(parents=True)
    frame = pd.DataFrame([*rows, question])
    frame.to_parquet(folder / "tables" / "04_responses.parquet")
    return folder


@pytest.fixture(params=FAMILIES)
def family(request, families):
    return families[request.param]


def edit_of(seed, tokens="all", *, size=1.0, take_out=0, place="layer", wide=32):
    """A random edit of a tiny model, which may take random directions out of all layers but one."""
    generator = torch.Generator().manual_seed(seed)
    add = torch.randn(3, wide, generator=generator) * size
    project = None
    if take_out:
        project = torch.linalg.qr(torch.randn(3, 32, take_out, generator=generator)).Q.mT.clone()
        project[1] = 0
    return Edit(add, tokens, project=project, place=place)


@pytest.fixture
def steered(family, requests):
    """Every image condition that the family can be shown, rows with their own edits."""
    conditions = (
        ("none", "own", "blank", "caption", "noise") if family.sees_images else ("none", "caption")
    )
    edits = [None, edit_of(0), edit_of(1, "last", take_out=2), edit_of(2), edit_of(3, "image")]
    edits += [edit_of(4, "generated", take_out=1), edit_of(5, place="heads")]
    edits += [edit_of(6, "last", take_out=1, place="mlp")]
    return [
        Trial(sample, conditions[i % len(conditions)], edits[i % len(edits)])
        for i, sample in enumerate(requests + requests[:4])
    ]
