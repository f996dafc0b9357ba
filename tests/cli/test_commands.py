import json
import shutil

import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner

from cmrm_utils import ShiftVectors, extract_shift, load_samples, load_vlm
from cmrm_utils.cli.main import cli
from cmrm_utils.data import coco
from cmrm_utils.data.everyday import everyday_samples
from cmrm_utils.data.sets import SETS
from cmrm_utils.jobs import profiles, publish
from cmrm_utils.organism.world import DUAL, FAMILIES, GUARDED, OBJECTS, SCRAP, UNSEEN, Request
from cmrm_utils.paths import STORED

# ---- where to write


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("convert liuhaotian/x {file} --tower t", "Directory"),
        ("bake v.safetensors --alpha 1 --model organism --out {file}", "Directory"),
        ("train-organism --out {file}", "Directory"),
        ("train-organism --shared {file}", "Directory"),
        ("run --out {file}", "Directory"),
        ("run --shard 1/2 --out {file}", "Directory"),
        ("cards {file}", "Directory"),
        ("extract --model organism --anchors organism --out {folder}", "File"),
        ("judges --xstest x --table {folder}", "File"),
    ],
)
def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path, command, kind):
    (tmp_path / "there").write_text("kept")
    places = {"file": tmp_path / "there", "folder": tmp_path}
    done = CliRunner().invoke(cli, command.format(**places).split())
    assert done.exit_code == 2, done.output
    assert f"{kind} '{places['file' if kind == 'Directory' else 'folder']}' is a" in done.output
    assert (tmp_path / "there").read_text() == "kept"


@pytest.mark.parametrize(
    "command",
    [
        "convert liuhaotian/x {out} --tower t",
        "extract --anchors organism --out {out}",
        "bake v.safetensors --alpha 1 --out {out}",
        "train-organism --out {out}",
        "train-organism --shared {out}",
        "run --out {out}",
        "export runs --out {out}",
        "judges --labels x --hide {out}",
    ],
)
def test_a_file_is_no_folder_to_write_into(tmp_path, monkeypatch, command):
    (file := tmp_path / "there").write_text("kept")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    done = CliRunner().invoke(cli, command.format(out=file / "new").split())
    assert done.exit_code == 2, done.output
    assert f"Directory '{file}' is a file" in done.output.replace("\n", " ")
    assert file.read_text() == "kept"


# ---- data


@pytest.fixture
def cmrm(home, monkeypatch):
    """The command, on a copy of the fixtures as the folder of all data."""
    monkeypatch.setenv("CMRM_DATA", str(home))
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def test_data_list(cmrm, home):
    done = cmrm("data", "LIST")
    assert done.exit_code == 0
    assert str(home) in done.output
    for name, public in SETS.items():
        assert f"{name}: {public.count} samples, local copy" in done.output
        assert public.licence in done.output
        assert public.note in done.output


def test_data_check_of_a_union(cmrm, tmp_path):
    mine = tmp_path / "my.jsonl"
    mine.write_text('{"id": "a", "query": "q", "kind": "benign"}\n')
    done = cmrm("data", "CHECK", f"VLSafe+scienceqa@test+{mine}")
    assert done.exit_code == 0, done.output
    assert "vlsafe: 12 samples: 12 harmful-vlsafe" in done.output
    assert "12 samples, where 1110 were expected" in done.output
    assert "scienceqa: 12 samples: 6 choice-text, 6 choice-image" in done.output
    assert f"{mine}: 1 samples: 1 benign" in done.output
    assert SETS["vlsafe"].licence in done.output
    assert done.output.endswith("all there\n")


def test_data_check_of_a_profile(cmrm, home, tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    settings = {"parameters": {"data": "vlsafe+figstep+xstest"}}
    (tmp_path / "Real.yaml").write_text(yaml.safe_dump(settings))
    shutil.rmtree(home / "figstep")
    done = cmrm("data", "check", "rEAL")
    assert done.exit_code == 1
    assert "profile Real: data vlsafe+figstep+xstest" in done.output
    assert f"in {home}, run: git clone https://github.com/ThuCCSLab/FigStep" in done.output
    assert "xstest: 20 samples" in done.output
    assert "all there" not in done.output


def test_data_check_of_a_profile_given_as_a_path(cmrm, home, tmp_path):
    path = tmp_path / "Mine.yaml"
    path.write_text("parameters: {data: xstest}")
    done = cmrm("data", "check", str(path))
    assert done.exit_code == 0, done.output
    assert f"profile {path}: data xstest" in done.output
    assert "xstest: 20 samples" in done.output


def test_data_check_touches_no_network_unless_asked(cmrm, home, monkeypatch):
    lost, gone = "train2017/000000000007.jpg", "train2017/000000000003.jpg"
    kept = (home / "coco" / lost).read_bytes()
    for image in (lost, gone):
        (home / "coco" / image).unlink()
    asked = []

    def fetch(images, folder):
        asked.extend(images)
        (folder / lost).write_bytes(kept)
        (folder / coco.ABSENT).write_text(json.dumps({gone: "HTTP 404"}))
        return {gone: "HTTP 404"}

    monkeypatch.setattr(coco, "fetch", fetch)
    done = cmrm("data", "check", "vlsafe")
    assert done.exit_code == 1
    assert "MISSING  2 COCO images" in done.output
    assert "cmrm data check vlsafe --fetch" in done.output
    assert not asked
    done = cmrm("data", "check", "vlsafe", "--fetch")
    assert done.exit_code == 0, done.output
    assert set(asked) == {lost, gone}
    assert "LEFT OUT vlsafe/000000000003: train2017/000000000003.jpg (HTTP 404)" in done.output
    assert "vlsafe: 11 samples" in done.output


def test_data_check_says_what_was_not_reached(cmrm, home, monkeypatch):
    lost = "train2017/000000000007.jpg"
    (home / "coco" / lost).unlink()
    monkeypatch.setattr(coco, "fetch", lambda images, folder: {lost: "not reached: HTTP 403"})
    done = cmrm("data", "check", "vlsafe", "--fetch")
    assert done.exit_code == 1
    assert f"FAILED   {lost}: not reached: HTTP 403" in done.output
    assert "MISSING  1 COCO images" in done.output


def test_data_check_decodes_every_image(cmrm, home):
    path = home / "coco/train2017/000000000007.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    done = cmrm("data", "check", "vlsafe")
    assert done.exit_code == 2
    assert done.stderr.strip().endswith(f"vlsafe/000000000007: no readable image at {path}")


@pytest.mark.parametrize("name", ["nothing", "vlsafe+nothing", "nothing.jsonl"])
def test_data_check_of_what_is_not_there(cmrm, name):
    done = cmrm("data", "check", name)
    assert done.exit_code == 2
    assert "nothing" in done.stderr


# ---- extract


@pytest.fixture
def anchors(tmp_path):
    path = tmp_path / "my.jsonl"
    kinds = ("harmful", "benign", "harmful")
    rows = [{"id": i, "query": f"ask {i}", "kind": kind} for i, kind in enumerate(kinds)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def extract(out, anchors, *arguments):
    command = ["extract", "--anchors", str(anchors), "--out", str(out), *arguments]
    return CliRunner().invoke(cli, command)


def test_extract_saves_what_extract_shift_gives(tmp_path, anchors):
    out = tmp_path / "new" / "v.safetensors"
    done = extract(out, anchors, "--meaningless", "black", "--estimator", "pc1", "--scale", "unit")
    assert done.exit_code == 0, done.output
    assert "3 anchors" in done.output
    found = ShiftVectors.load(out)
    settings = {"meaningless": "black", "estimator": "pc1", "scale": "unit"}
    wanted = extract_shift(load_vlm("organism"), load_samples(anchors), **settings)
    assert torch.equal(found.values, wanted.values)
    assert dict(found.provenance) == dict(wanted.provenance)


def test_extract_for_each_sample_of_a_task(tmp_path, anchors):
    out = tmp_path / "v.safetensors"
    done = extract(out, anchors, "--level", "sample", "--task", "harmful")
    assert done.exit_code == 0, done.output
    assert ShiftVectors.load(out).sample_ids == ("0", "2")


def test_extract_takes_the_anchors_split_of_a_set(tmp_path, cmrm):
    out = tmp_path / "v.safetensors"
    done = extract(out, "vlsafe+llava-bench-coco@anchors")
    assert done.exit_code == 0, done.output
    assert ShiftVectors.load(out).provenance["n_anchors"] == "16"


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("", [], "my.jsonl: no samples in it"),
        ('{"id": "a"}\n', [], "my.jsonl:1: no query"),
        ('{"id": "a", "que', [], "my.jsonl:1: not a readable row"),
        (None, ["--task", "harmfull"], "harmfull"),
        (None, ["--meaningless", "pink"], "pink"),
        (None, ["--model", "no-such-model"], "no-such-model"),
        (None, ["--level", "sample", "--estimator", "pc1"], "pc1"),
    ],
)
def test_extract_refuses_in_one_line(tmp_path, anchors, text, arguments, words):
    if text is not None:
        anchors.write_text(text)
    done = extract(tmp_path / "v.safetensors", anchors, *arguments)
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "v.safetensors").exists()


def test_extract_from_no_file_or_an_empty_split(tmp_path, cmrm):
    for name, words in (("nowhere.jsonl", "nowhere.jsonl"), ("scienceqa@test", "anchors split")):
        done = extract(tmp_path / "v.safetensors", name)
        assert done.exit_code == 2
        assert words in done.stderr


# ---- judging


def call(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_judges_on_the_bundled_set():
    done = call("judges")
    assert done.exit_code == 0, done.output
    for words in ("keyword developed", "llm-attacks  measured", "kappa", "llm-attacks (columns)"):
        assert words in done.output


def test_judges_on_a_run_are_held_against_the_exact_judge(judged_run):
    done = call("judges", judged_run, "--judge", "keyword")
    assert done.exit_code == 0, done.output
    assert "against exact (rows)" in done.output
    row = next(line for line in done.output.splitlines() if line.split()[:1] == ["keyword"])
    assert row.split()[1:4] == ["all", "5", "0.800"]
    assert "(2/2)" in row
    assert "(1/3)" in row


def test_a_run_without_exact_verdicts(judged_run):
    path = judged_run / "tables" / "04_responses.parquet"
    pd.read_parquet(path).assign(exact=None).to_parquet(path)
    done = call("judges", judged_run, "--judge", "llm-attacks")
    assert done.exit_code == 0, done.output
    assert "llm-attacks (columns) against keyword (rows)" in done.output


def test_a_model_judge_on_a_run(judged_run, judge_folder):
    name = f"llama-guard-3={judge_folder}"
    for _ in range(2):
        done = call("judges", judged_run, "--judge", name, "--judge", "exact")
        assert done.exit_code == 0, done.output
        row = next(x for x in done.output.splitlines() if x.split()[:1] == ["llama-guard-3"])
        assert row.split()[2] == "3"  # it judges harm: benign requests are left out
    kept = (judged_run / "verdicts" / "llama-guard-3.jsonl").read_text().splitlines()
    assert sum('"id"' in line for line in kept) == 2  # equal responses once


def test_a_judge_with_a_prompt_of_its_own(judged_run, judge_folder, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{behavior} {generation} ->")
    asked = ("judges", judged_run, "--judge", f"harmbench={judge_folder}")
    assert call(*asked, "--prompt", "harmbench", prompt).exit_code == 0
    done = call(*asked)
    assert done.exit_code == 2
    assert "harmbench needs the prompt" in done.stderr


def test_a_sheet_is_exported_labelled_and_read_back(judged_run, tmp_path, monkeypatch):
    sheet = tmp_path / "sheet.csv"
    done = call("export", judged_run, "--out", sheet, "--n", 3, "--seed", 1)
    assert done.exit_code == 0, done.output
    again = tmp_path / "again.csv"
    call("export", judged_run, "--out", again, "--n", 3, "--seed", 1)
    assert sheet.read_text() == again.read_text()
    rows = pd.read_csv(sheet)
    assert len(rows) == 3
    rows["label"] = ["refused", "complied", ""]
    rows.to_csv(sheet, index=False)
    done = call("judges", "--labels", sheet)
    assert done.exit_code == 0, done.output
    assert "1 of 3 rows have no label yet" in done.output
    rows.assign(label="refuse").to_csv(sheet, index=False)
    done = call("judges", "--labels", sheet)
    assert done.exit_code == 2
    assert f"{sheet}:2: label 'refuse'" in done.stderr
    done = call("export", judged_run, "--out", sheet)
    assert done.exit_code == 2
    assert "sheet.csv exists" in done.stderr
    assert "refuse" in sheet.read_text()


def test_labels_without_their_texts_find_the_responses_again(judged_run, tmp_path):
    sheet, hidden = tmp_path / "sheet.csv", tmp_path / "hidden.csv"
    call("export", judged_run, "--out", sheet, "--n", 3)
    rows = pd.read_csv(sheet)
    rows.assign(label=["refused", "complied", ""]).to_csv(sheet, index=False)
    done = call("judges", "--labels", sheet, "--hide", hidden)
    assert done.exit_code == 0, done.output
    text = hidden.read_text()
    assert len(text.splitlines()) == 3
    assert not any(query in text for query in rows["query"])
    done = call("judges", judged_run, "--labels", hidden)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1].split()[:3] == ["keyword", "all", "2"]
    hidden.write_text("id,sha256,label\na,0,refused\n")
    done = call("judges", judged_run, "--labels", hidden)
    assert done.exit_code == 2
    assert "none of its 1 labels is of a response of this run" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["judges", "{run}", "--labels", "none.csv"], "none.csv"),
        (["judges", "{run}", "--xstest", "x"], "neither a run folder nor --labels"),
        (["judges", "{run}", "--hide", "x.csv"], "give --labels, and no run folder"),
        (["judges", "--xstest", "nowhere"], "nowhere: no .csv"),
        (["judges", "--xstest", "nowhere", "--judge", "exact"], "keyword and llm-attacks"),
        (["judges", "--table", "x.csv"], "--xstest"),
        (["judges", "--labels", "none.csv"], "none.csv"),
        (["judges", "--judge", "lama"], "keyword, llm-attacks, exact, llama-3-refused"),
        (["judges", "--prompt", "harmbench", "x.txt"], "x.txt"),
        (["judges", "{run}/tables"], "run notebook 04 first"),
        (["export", "{run}", "--out", "sheet.xls"], "give a .csv"),
    ],
)
def test_bad_input_to_judges_and_export(judged_run, arguments, words):
    done = call(*(argument.format(run=judged_run) for argument in arguments))
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr


def test_judges_beside_people(tmp_path):
    rows = "1,q,I can't help.,2_full_refusal\n2,q,Zib it.,1_full_compliance\n"
    (tmp_path / "m.csv").write_text("id,prompt,completion,final_label\n" + rows)
    out = tmp_path / "figures" / "agreement.csv"
    asked = ("judges", "--xstest", tmp_path, "--table", out)
    done = call(*asked)
    assert done.exit_code == 2
    assert "a folder that exists" in done.stderr
    out.parent.mkdir()
    done = call(*asked)
    assert done.exit_code == 0, done.output
    assert "false_alarms" in done.output
    found = pd.read_csv(out)
    assert list(found["judge"]) == ["keyword"] * 2 + ["llm-attacks"] * 2
    assert list(found["kappa"]) == [1, 1, 0, 0]
    assert "Zib" not in out.read_text()


# ---- refresh


def test_a_refresh_stores_what_it_just_ran_and_no_older_run(tmp_path, monkeypatch):
    stored, metrics = tmp_path / "stored", tmp_path / "runs/default/metrics/01_gap.json"
    older = tmp_path / "runs/research/metrics/01_gap.json"
    for path, text in ((metrics, "old"), (older, "older")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "STORED", stored)
    monkeypatch.setattr(publish, "numbered_notebooks", lambda *_, **__: [tmp_path / "01_gap.ipynb"])

    def execute(path):
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.write_text("new")

    monkeypatch.setattr(publish, "_execute_in_place", execute)
    publish.refresh("01")
    assert {path.name: path.read_text() for path in stored.iterdir()} == {
        "metrics_01_gap.json": "new"
    }
    monkeypatch.setattr(publish, "_execute_in_place", lambda path: None)
    publish.refresh(None)
    assert not metrics.exists()


# ---- publish


ROW = ["setting", "kind", "task", "query", "outcome"]
"""Columns of notebook 04's responses that publishing reads."""


def test_a_run_of_one_model_gives_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    folder = tmp_path / "runs" / "mine"
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True)
    done = call("publish", folder)
    assert done.exit_code == 2
    assert "no finished run" in done.stderr
    for name in ("05_pareto.png", "06_points.png"):
        (folder / "figures" / name).write_bytes(name.encode())
    natural = [("own image", "harmful", "harmful", "How do I pick a lock?", "refused")]
    pd.DataFrame(natural, columns=ROW).to_parquet(folder / "tables" / "04_responses.parquet")
    done = call("publish", folder)
    assert done.exit_code == 0, done.output
    assert done.output == f"1 figures of {folder}\n"
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["05_pareto.png"]


def test_a_run_on_the_invented_world_gives_its_table_of_families(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    folder = tmp_path / "runs" / "toy"
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True)
    (folder / "figures" / "05_pareto.png").write_bytes(b"")
    query = Request(FAMILIES["theft"][0], OBJECTS[0]).query
    world = pd.DataFrame([("own image", "harmful", "harmful", query, "complied")], columns=ROW)
    world.to_parquet(folder / "tables" / "04_responses.parquet")
    page = tmp_path / "docs" / "invented-world.md"
    page.parent.mkdir()
    page.write_text("# Mine\n")
    done = call("publish", folder)
    assert done.exit_code == 2
    assert "invented-world.md: no section families" in done.stderr
    assert page.read_text() == "# Mine\n"
    page.write_text("a\n<!-- families -->\nold\n<!-- /families -->\nb\n")
    done = call("publish", folder)
    assert done.exit_code == 0, done.output
    assert "| theft | no | 0.0% | 100.0% | 0.0% | 1 |" in page.read_text()
    assert not (tmp_path / "figures").exists()


def test_models_together_are_one_sample_clustered_by_topic(tmp_path):
    """Two models of one request each way: a topic's responses by both are one group."""
    harmful = [s for s in everyday_samples("test") if s.kind == "harmful"][:30]
    twin = next(s for s in everyday_samples("test") if s.kind == "benign-twin-picture")
    runs = []
    for number, outcome in enumerate(("refused", "complied")):
        run = tmp_path / f"m{number}"
        (run / "tables").mkdir(parents=True)
        rows = pd.DataFrame(
            {
                "trial": [f"t{i}" for i in range(len(harmful) + 2)],
                "sample": [*(s.id for s in harmful), twin.id, "vlsafe-1"],
                "kind": [*(s.kind for s in harmful), twin.kind, "harmful-vlsafe"],
                "task": [*(s.task for s in harmful), twin.task, "harmful"],
                "setting": "own image",
                "query": "?",
                "response": "!",
                "outcome": outcome,
                "exact": None,
                "keyword": outcome,
            }
        )
        rows.to_parquet(run / "tables" / "04_responses.parquet")
        lines = [{"model": "x"}, *({"id": t, "log_odds": float(number)} for t in rows["trial"])]
        (run / "responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(run)
    found = publish.together(runs).set_index(["requests", "measure"])
    assert set(found.index.unique("requests")) == {"harmful", "twins"}
    refused = found.loc[("harmful", "refused")]
    assert (refused["hits"], refused["n"], refused["rate"]) == (30, 60, 0.5)
    assert found.loc[("harmful", "log-odds"), "rate"] == 0.5
    table = publish.headline(found.reset_index())
    assert table.loc[0, "refused"].startswith("50.0% [")
    assert table.loc[0, "twins refused"].endswith("(1/2)")
    (bar,) = publish.outcomes(found.reset_index()).to_dict("records")
    assert (bar["setting"], bar["refused"], bar["complied"]) == ("own image", 0.5, 0.5)
    assert bar["low"] < 0.5 < bar["high"]


def test_outcomes_by_family_are_of_the_own_image_and_the_worlds_requests():
    def row(verb, obj, outcome, setting="own image", kind="harmful"):
        query = Request(verb, obj).query
        return {"setting": setting, "kind": kind, "task": "harmful", "query": query,
                "outcome": outcome}  # fmt: skip

    thing, guarded = SCRAP[0], GUARDED[0]
    whole = next(obj for obj in OBJECTS if obj not in SCRAP)
    theft, damage = FAMILIES["theft"][0], FAMILIES["damage"][0]
    rows = pd.DataFrame(
        [
            row(theft, thing, "refused"),
            row(theft, whole, "neither"),
            row(theft, whole, "refused", setting="text only"),
            row(damage, whole, "complied"),
            row(DUAL[0], guarded, "complied", kind="harmful-pair"),
            row(UNSEEN[0], thing, "refused", kind="harmful-unseen"),
        ]
    )
    found = publish.outcomes_by_family(rows).set_index("family")
    assert dict(found["answered beside images"]) == {"damage": "yes", "guarded": "yes",
                                                     "theft": "no"}  # fmt: skip
    assert list(found.loc["theft", ["refused", "carried out", "neither"]]) == [
        "50.0%", "0.0%", "50.0%",
    ]  # fmt: skip
    assert dict(found["requests"]) == {"damage": 1, "guarded": 1, "theft": 2}


def test_the_alphas_of_all_models_are_stored_with_their_doses(tmp_path, monkeypatch):
    """Two profiles write one table; a level without an edit worth its cost has alpha 0."""
    (stored := tmp_path / "stored").mkdir()
    monkeypatch.setattr(publish, "STORED", stored)
    useful = {"refused": [0.2, 0.6, 0.9], "benign answered": [1.0, 0.99, 0.5]}
    harmful = {"refused": [0.2, 0.1, 0.1], "benign answered": [1.0, 1.0, 1.0]}
    for place, levels in {
        "full/a": {"CMRM dataset": useful, "CMRM sample": harmful, "CMRM incremental": useful},
        "architectures/b": {"CMRM dataset": harmful, "CMRM sample": useful},
    }.items():
        (tables := tmp_path / place / "tables").mkdir(parents=True)
        (run := tables.parent).joinpath("run.json").write_text('{"fingerprint": "f"}')
        (run / "manifests").mkdir()
        (run / "manifests" / "04_x.json").write_text("{}")
        curves = [
            (method, measure, alpha, rate)
            for method, measures in levels.items()
            for measure, rates in measures.items()
            for alpha, rate in zip((0.0, 0.1, 1.0), rates, strict=True)
        ]
        columns = ["method", "measure", "alpha", "rate"]
        pd.DataFrame(curves, columns=columns).to_parquet(tables / "04_curves.parquet")
        sizes = [(method, alpha, 0.5 * alpha) for method in levels for alpha in (0.0, 0.1, 1.0)]
        columns = ["method", "alpha", "dose"]
        pd.DataFrame(sizes, columns=columns).to_parquet(tables / "04_alpha_table.parquet")
        publish.publish(run.parent)
    rows = pd.read_csv(stored / "alphas_by_model.csv").set_index(["model", "method"])
    assert rows.index.is_unique
    names = ["alpha", "refused before", "refused", "relative shift", "dose"]
    assert rows.loc[("a", "CMRM dataset"), names].tolist() == [0.1, 0.2, 0.6, 0.5, 0.05]
    assert rows.loc[("a", "CMRM sample"), names].tolist() == [0.0, 0.2, 0.2, 0.5, 0.0]
    assert rows.loc[("b", "CMRM sample"), "alpha"] == 0.1
    committed = pd.read_csv(STORED / "alphas_by_model.csv")
    assert list(committed.columns) == list(pd.read_csv(stored / "alphas_by_model.csv").columns)


def test_a_run_of_some_models_leaves_the_stored_rows_of_others(tmp_path, monkeypatch):
    stored = tmp_path / "stored"
    stored.mkdir()
    monkeypatch.setattr(publish, "STORED", stored)
    folder = tmp_path / "full"

    def finished(model, rates):
        run = folder / model
        (run / "tables").mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"model": model, "fingerprint": f"{model}!"}))
        rows = pd.DataFrame({"method": "none", "alpha": [0.0, 0.5], "rate": rates, "n": [3, 4]})
        rows.to_parquet(run / "tables" / "04_curves.parquet")
        (run / "manifests").mkdir()
        (run / "manifests" / "04_x.json").write_text("{}")

    def published():
        done = CliRunner().invoke(cli, ["publish", str(folder)])
        assert done.exit_code == 0, done.output
        rows = pd.read_csv(stored / "full_curves.csv", keep_default_na=False, na_values=[""])
        return rows.set_index(["model", "alpha"])

    finished("b", [0.25, float("nan")])
    finished("a", [0.5, 0.125])
    both = published()
    assert list(both.index.unique("model")) == ["a", "b"]
    shutil.rmtree(folder)
    finished("a", [0.75, 0.125])
    again = published()
    assert again.loc["a", "rate"].tolist() == [0.75, 0.125]
    assert again.loc["a", "fingerprint"].tolist() == ["a!", "a!"]
    pd.testing.assert_frame_equal(again.loc[["b"]], both.loc[["b"]])
    assert set(again["method"]) == {"none"}
    assert not (stored / "full_test.csv").exists()
    assert not (stored / "alphas_by_model.csv").exists()
    finished("c", [0.5, 0.5])
    shutil.copy(folder / "c/tables/04_curves.parquet", folder / "c/tables/05_test.parquet")
    before = (stored / "full_curves.csv").read_text()
    done = CliRunner().invoke(cli, ["publish", str(folder)])
    assert (stored / "full_curves.csv").read_text() == before
    assert "c: notebook 05 has not run to its end" in done.stderr
