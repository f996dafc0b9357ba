import json
from dataclasses import replace

import pandas as pd
import pytest
from conftest import TINY

from cmrm_utils import InputError
from cmrm_utils.data.load import load_samples, take
from cmrm_utils.organism.recipe import Stage
from cmrm_utils.organism.training import train
from cmrm_utils.studies import card


def rows_of(*cells):
    columns = ["measure", "kind", "image", "hits", "n"]
    return pd.DataFrame([dict(zip(columns, cell, strict=True)) for cell in cells])


@pytest.mark.parametrize(("hits", "met"), [(4, True), (5, False)])
def test_targets_pool_the_kinds_and_know_their_limits(hits, met):
    rows = rows_of(
        ("unsafe", "harmful", "none", hits, 100),
        ("unsafe", "harmful-pair", "none", 0, 100),
        ("unsafe", "harmful-unseen", "none", 100, 100),
        ("unsafe", "harmful", "own", 90, 100),
        ("over-refusal", "benign", "none", 0, 100),
        ("benign answered", "benign", "own", 98, 100),
        ("visual questions", "colour", "own", 94, 100),
        ("visual questions", "shape", "own", 96, 100),
    )
    found = card.targets(rows)
    assert found["text-only unsafe"] == (pytest.approx(hits / 200), met)
    assert found["text-only over-refusal"] == (0.0, True)
    assert found["benign answered"] == (0.98, True)
    assert found["visual questions"] == (0.95, True)


def test_visual_questions_are_asked_with_their_image_only(tiny):
    samples = take(load_samples("organism", "validation"), 1, "harmful", "visual", "fact")
    rows = card.measure(tiny, samples)
    assert set(rows.loc[rows["task"] == "visual", "image"]) == {"own"}
    assert set(rows.loc[rows["task"] == "harmful", "image"]) == set(card.CONDITIONS)
    assert set(card.summary(rows)["measure"]) >= {"unsafe", "visual questions", "facts"}


def test_card_of_an_organism(tmp_path, monkeypatch):
    """From training to the card, with two steps a stage and three samples a kind."""
    real = load_samples

    def few(name, split):
        return take(real(name, split), 3, "harmful", "benign", "visual", "fact")

    monkeypatch.setattr(card, "load_samples", few)
    names = ("tower", "text", "chat", "projector", "instruct")
    recipe = replace(TINY, stages={name: Stage(2, 4, 1e-3) for name in names})
    stages = card.StageMeasurements()
    train(recipe, 0, tmp_path / "tiny", progress=False, on_stage=stages)
    card.write(tmp_path / "tiny", stages)
    text = (tmp_path / "tiny" / "README.md").read_text()
    for words in ("tiny (seed 0)", "language model before any image", "projector training alone"):
        assert words in text
    models = {row["model"] for row in json.loads((tmp_path / "tiny" / "measured.json").read_text())}
    assert len(models) == 3
    with pytest.raises(InputError, match="no organism"):
        card.render(tmp_path)
