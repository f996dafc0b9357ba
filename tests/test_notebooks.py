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
import torch
import yaml
from committed import APPENDIX, ASKING, CORE, NOTEBOOKS, PLAYGROUND, RESEARCH, code_cells, default

from cmrm_utils import load_samples, load_vlm
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


LLAVA = ROOT / "notebooks" / "profiles" / "llava-7b.yaml"
TABLES = ("04_test", "04_judges", "05_scores", "05_choices")
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


@pytest.fixture(scope="module")
def refusing(family_folders, tmp_path_factory):
    """A tiny LLaVA that refuses harmful requests of the fixtures as text, and answers the others.

    A random one refuses nothing in words, and so has no refusal log-odds.
    """
    vlm = load_vlm(family_folders["llava"], system="vicuna")
    tokenizer, data = vlm.processor.tokenizer, yaml.safe_load(LLAVA.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMRM_DATA", str(ROOT / "tests" / "fixtures"))
        splits = load_samples(data["parameters"]["data"])
    requests = [s for split in ("anchors", "validation") for s in splits[split]]
    rows = []
    for sample in requests:
        if sample.task in ("harmful", "benign"):
            said = "I can't" if sample.harmful else "Yes, of course"
            answer = tokenizer(said, add_special_tokens=False)["input_ids"]
            prompt = vlm.inputs([sample.prompt], [None])["input_ids"][0].tolist()
            rows.append((prompt, [*answer, tokenizer.eos_token_id]))
    wide = max(len(prompt) + len(answer) for prompt, answer in rows)

    def filled(value, row):
        return [value] * (wide - len(row)) + row

    batch = {
        "input_ids": [filled(tokenizer.pad_token_id, p + a) for p, a in rows],
        "attention_mask": [filled(0, [1] * len(p + a)) for p, a in rows],
        "labels": [filled(-100, a) for _, a in rows],
    }
    batch = {name: torch.tensor(values) for name, values in batch.items()}
    model = vlm.model.requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.2
    folder = tmp_path_factory.mktemp("refusing")
    model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


def test_the_same_notebooks_serve_a_llava_and_the_public_sets(refusing, judge_folder, tmp_path):
    """A tiny LLaVA, judge and reviewer, local copies of the sets: to the report, offline."""
    run = tmp_path / "run"
    asked = ["-p", "judges", f"[llama-3-helps={judge_folder}]", "-p", "reviewer", str(judge_folder)]
    done = run_profile("llava-7b", refusing, run, *asked)
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
    # Refused, answered, broken and log-odds, each with an interval that is clustered by topic.
    tested = tables["04_test"]
    harmful = tested[tested["kind"].str.startswith("harmful")]
    kinds = harmful.groupby("measure")["kind"].nunique()
    assert set(kinds.index) == {"refused", "answered", "broken", "log-odds"}
    assert kinds.nunique() == 1
    assert harmful[["rate", "low", "high"]].notna().all(axis=None)
    assert (harmful["low"] <= harmful["rate"]).all()
    assert (harmful["rate"] <= harmful["high"]).all()
    text = harmful[harmful["setting"] == "text only"].set_index(["measure", "kind"])["rate"]
    assert (text["refused"] == 1.0).any()
    assert (text["log-odds"][text["refused"] == 1.0] > 0).all()
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
