"""A new method is one file and one line: the example of docs/architecture.md, run as it is."""

import re

import pytest

from cmrm_utils.methods import registry
from cmrm_utils.paths import ROOT
from cmrm_utils.studies import sweep
from cmrm_utils.studies.notebook import Notebook


@pytest.fixture
def push(monkeypatch):
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = next(
        code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "_prepare" in code
    )
    names = {}
    exec(compile(source, "architecture.md", "exec"), names)
    monkeypatch.setitem(registry.METHODS, "push", names["METHOD"])
    return names["METHOD"]


def test_the_worked_example_is_swept_and_tested_like_any_method(
    push, family_folders, tmp_path, monkeypatch
):
    monkeypatch.setattr("cmrm_utils.studies.notebook.ANCHORS", 3)
    model = str(family_folders["llava"])
    nb = Notebook.open("06_x", model=model, data="organism", out=tmp_path, max_new_tokens=3)
    methods = registry.with_settings(["push"], grids={"push": [{"strength": 5.0}]})
    plain = sweep.validation(nb, 2)
    swept = sweep.sweep(nb, methods, plain)
    assert swept.rows["setting"].unique().tolist() == ["no edit", "strength 5"]
    assert swept.labels["push"] in ("no edit", "strength 5")
    ids = [{trial.id for trial in these} for these in sweep.settings_lists(nb, push, plain)]
    assert len(ids) == 3
    assert not set.intersection(*ids, {trial.id for trial in plain})
    rows = sweep.test(nb, swept, sweep.samples_tested(nb, 1), ("none", nb.image))
    assert "push" in set(rows["setting"])


def test_the_page_of_settings_names_every_method():
    """And says which are tested as published, and only those."""
    text = (ROOT / "docs" / "defences.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\| \w", line)]
    rows = [line.split("|")[1:4] for line in lines]
    told = {name.strip().partition(" (")[0]: cells[1].strip() for name, *cells in rows[1:]}
    words = {word.strip() for names in told for word in names.split(",")}
    words |= {f"CMRM {word}" for word in words}
    assert set(registry.METHODS) <= words
    published = {name for name, cell in told.items() if not cell.startswith("none")}
    assert {f"{name.split(' dataset')[0]}, as published" for name in published} == set(
        registry.PUBLISHED
    )
