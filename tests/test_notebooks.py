"""The committed notebooks: well kept, and general."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import papermill
import pytest
from committed import APPENDIX, ASKING, CORE, NOTEBOOKS, PLAYGROUND, RESEARCH, code_cells, default

from cmrm_utils.paths import ROOT
from cmrm_utils.results.rates import REST

CHECK = "# NBVAL_CHECK_OUTPUT"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


@pytest.fixture(params=ASKING, ids=lambda path: path.stem)
def asking(request):
    return request.param


def test_there_are_five():
    assert [path.name[:2] for path in CORE] == ["01", "02", "03", "04", "05"]


def test_only_the_appendix_asks_no_model():
    assert [path.stem for path in APPENDIX] == ["10_three_seeds", "11_invented_world"]
    assert not set(APPENDIX) & set(ASKING)


def test_committed_executed_in_order(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"


def test_cells_that_hold_results_have_outputs(notebook):
    checked = [cell for cell in code_cells(notebook) if cell.source.startswith(CHECK)]
    assert checked
    for cell in checked:
        text = "".join(output.get("text", "") for output in cell.outputs)
        assert len(text.splitlines()) >= 2


def test_readable(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert len(cells) <= 20
    assert cells[0].cell_type == "markdown"
    claim = r"\*\*(The paper's claim|What the toy is for)\.\*\*"
    assert notebook == PLAYGROUND or re.search(claim, cells[0].source)
    assert all(cell.source.count("\n") < 25 for cell in cells if cell.cell_type == "code")
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == (notebook in ASKING)
    assert notebook.stat().st_size < 2_000_000


HEADS = ("**Verdict here: ", "**You will know**", "**Time.**")
TAIL = ("## Conclusion and limits", "## Checks", "## What to read next")


@pytest.mark.parametrize("path", [*CORE, *APPENDIX], ids=lambda path: path.stem)
def test_a_notebook_has_its_form(path):
    """A verdict first; conclusion, checks and what to read next last, in order."""
    cells = nbformat.read(path, as_version=4).cells
    assert all(head in cells[0].source for head in HEADS)
    whole = "\n".join(cell.source for cell in cells)
    places = [whole.index(head) for head in TAIL]
    assert places == sorted(places)
    assert cells[-1].source.startswith(TAIL[-1])
    assert whole.index("# NBVAL_CHECK_OUTPUT") > places[1]


@pytest.mark.parametrize("path", [*CORE, *APPENDIX], ids=lambda path: path.stem)
def test_verdicts_say_what_the_stored_tables_say(path):
    """Every rate that the check computes from stored tables stands in the notebook's words."""
    cells = nbformat.read(path, as_version=4).cells
    (check,) = (c for c in cells if c.cell_type == "code" and c.source.startswith(CHECK))
    lines = "".join(output.get("text", "") for output in check.outputs).splitlines()
    stored = [line for line in lines if line.startswith("verdict")]
    words = " ".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert stored
    for line in stored:
        for rate in re.findall(r"\d+\.\d%|[+-]\d\.\d\d", line):
            assert rate.removesuffix("%") in words, line


def test_every_parameter_can_be_set(asking):
    """Papermill passes over a line whose comment it cannot parse."""
    (cell,) = (c for c in code_cells(asking) if "parameters" in c.metadata.get("tags", []))
    named = {line.partition(":")[0] for line in cell.source.splitlines()}
    found = papermill.inspect_notebook(str(asking))
    assert set(found) == named
    assert all(one["inferred_type_name"] for one in found.values())


def test_one_model_a_run_folder():
    """A run folder refuses a second model, so notebooks of other models write to other folders."""
    models = {}
    for path in ASKING:
        asked = default(path, "model"), default(path, "data")
        models.setdefault(default(path, "out"), set()).add(asked)
    assert all(len(each) == 1 for each in models.values()), models


def test_no_timestamps_or_paths(notebook):
    text = notebook.read_text()
    assert str(ROOT) not in text
    assert not re.search(r'"(execution|papermill)": \{', text)
    assert not re.search(r"/home/|/Users/|/tmp/", text)


TABLES = ("04_judges", "05_scores", "05_choices")
SMALL = {
    "n": "2",
    "n_validation": "2",
    "n_test": "2",
    "n_parts": "2",
    "alphas": "[0.5, 1.0]",
    "max_new_tokens": "4",
}


def run_profile(name, model, out, *more):
    """A profile by the command line on another model and the fixtures, offline."""
    command = [sys.executable, "-c", "from cmrm_utils.cli.main import cli; cli()", "run", name]
    command += ["-p", "model", str(model), "--out", str(out), *more]
    for parameter, value in SMALL.items():
        command += ["-p", parameter, value]
    home = str(ROOT / "tests" / "fixtures")
    return subprocess.run(
        command,
        env={**os.environ, "CMRM_DATA": home, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_same_notebooks_serve_a_llava_and_the_public_sets(
    family_folders, judge_folder, tmp_path
):
    """A tiny random LLaVA, judge and reviewer, local copies of the sets: to the report, offline."""
    run = tmp_path / "run"
    asked = ["-p", "judges", f"[llama-3-helps={judge_folder}]", "-p", "reviewer", str(judge_folder)]
    done = run_profile("llava-7b", family_folders["llava"], run, *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (run / "report.html").read_text()
    for notebook in CORE:
        manifest = run / "manifests" / f"{notebook.stem}.json"
        shared = json.loads(manifest.read_text())["shared"]
        assert shared["data"].startswith("vlsafe+")
        assert shared["settings"]["system"] == "vicuna"
        assert f"id='{notebook.stem}'" in page
    assert len((run / "responses.jsonl").read_text().splitlines()) > 100
    assert (run / "verdicts" / "llama-3-helps.jsonl").is_file()
    tables = {name: pd.read_parquet(run / "tables" / f"{name}.parquet") for name in TABLES}
    assert tables["04_judges"]["judge"].tolist() == ["llama-3-helps"]
    assert "all" in set(tables["05_scores"]["kind"])
    assert set(tables["05_choices"]["rows"]) == {"all", "with image"}


@pytest.mark.parametrize("number", [path.stem[:2] for path in (PLAYGROUND, *RESEARCH)])
def test_so_do_the_research_notebooks(number, family_folders, tmp_path):
    done = run_profile("llava-7b", family_folders["llava"], tmp_path / "run", "--only", number)
    assert done.returncode == 0, done.stderr[-3000:]
    (manifest,) = (tmp_path / "run" / "manifests").iterdir()
    assert manifest.stem.startswith(number)
    assert json.loads(manifest.read_text())["shared"]["data"].startswith("vlsafe+")


def test_the_defences_are_checked_where_no_safety_prompt_is_tried():
    """The invented world's model was never taught to heed one, and notebook 06 leaves it out."""
    path = next(path for path in RESEARCH if path.stem.startswith("06"))
    (check,) = (cell.source for cell in code_cells(path) if cell.source.startswith(CHECK))
    methods = ["own image", "CMRM, as published"]
    rows = [(name, measure, 0.6, 0.8) for name in methods for measure in ("refused", "neither")]
    by_method = pd.DataFrame(rows, columns=["method", "measure", "low", "high"])
    exec(check, {"by_method": by_method, "REST": REST})


def test_a_language_model_alone_is_asked_in_words(family_folders, tmp_path):
    """The paper's pure LLM row: text and captions, no edits; notebooks about images say no."""
    run = tmp_path / "run"
    model, settings = family_folders["vicuna"], ["-p", "settings", "{system: vicuna}"]
    done = run_profile("vicuna-7b", model, run, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    asked = pd.read_parquet(run / "tables" / "04_responses.parquet")
    requests = asked["task"].isin(["harmful", "benign"])
    assert set(asked.loc[requests, "setting"]) == {"text only", "caption as text"}
    assert set(asked.loc[~requests, "kind"]) == {"choice-text"}
    headline = pd.read_parquet(run / "tables" / "headline.parquet")
    assert list(headline["setting"]) == ["text only", "caption as text"]
    page = (run / "report.html").read_text()
    assert "sees no images: no shift to subtract" in page
    assert "sees no images: there is no shift" in page
    done = run_profile("vicuna-7b", model, tmp_path / "other", "--only", "01", *settings)
    assert done.returncode == 2
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("cmrm: "))
    assert "01_representation_gap.ipynb: " in line
    assert "sees no images: only the image conditions none and caption work" in line
