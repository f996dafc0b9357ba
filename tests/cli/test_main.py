import asyncio
import errno
import html
import inspect
import json
import os
import shutil
import signal
import sys
import threading
import time
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import yaml
from click.testing import CliRunner
from jupyter_core.utils import ensure_event_loop

from cmrm_utils import load_vlm
from cmrm_utils.cli.main import cli
from cmrm_utils.errors import InputError
from cmrm_utils.jobs import execute as workbook
from cmrm_utils.jobs import profiles
from cmrm_utils.loading import PLACEMENT, WHERE
from cmrm_utils.store import locked

PARAMETERS = """
model: str = "organism"
data: str = "organism"
out: str = "runs/x"
alpha: float = 0.1
n: int = 3
alphas: list[float] = [0.5]
kinds: list = []
settings: dict = {}
judges: list = []
reviewer: str = ""
""".strip()
FINISH = """
from pathlib import Path
manifest = Path(out) / "manifests" / "01_small.json"
manifest.parent.mkdir(parents=True, exist_ok=True)
manifest.write_text("{}")
print(f"alpha {alpha} n {n} data {data} <script>alert(1)</script>")
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder of one small notebook, where ``write`` sets its last cell."""
    settings = tmp_path / "profiles"
    settings.mkdir()
    monkeypatch.setattr(profiles, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(profiles, "PROFILES", settings)

    def write(last=FINISH, timeout=60):
        parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        cells = [nbformat.v4.new_markdown_cell("# Small"), parameters]
        cells.append(nbformat.v4.new_code_cell(last))
        kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, tmp_path / "01_small.ipynb")
        settings = {"timeout": timeout, "parameters": {"n": 4}}
        (profiles.PROFILES / "small.yaml").write_text(yaml.safe_dump(settings))

    write()
    return SimpleNamespace(write=write, folder=tmp_path / "run")


def run(desk, *arguments):
    return CliRunner().invoke(cli, ["run", "small", "--out", str(desk.folder), *arguments])


def test_runs_a_profile_and_reports(desk):
    done = run(desk, "-p", "alpha", "25e-2", "-p", "alphas", "[1e-2, 0.1]")
    assert done.exit_code == 0, done.output
    assert (desk.folder / "01_small.ipynb").is_file()
    page = (desk.folder / "report.html").read_text()
    assert "alpha 0.25 n 4 data organism" in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "alhpa", "0.1"], "'alhpa'; did you mean 'alpha'?"),
        (["-p", "alpha", "high"], "alpha"),
        (["-p", "alpha", ".nan"], "alpha"),
        (["-p", "alphas", "[0.1, null]"], "alphas, element 2 = None"),
        (["-p", "alphas", "[yes]"], "alphas, element 1 = True"),
        (["-p", "alphas", "[]"], "alphas = []: it is empty (01_small.ipynb takes list[float])"),
        (["-p", "alphas", "[.inf]"], "alphas, element 1 = inf"),
        (["-p", "alphas", "[0.1, 1e-1]"], "0.1 is in it twice"),
        (["-p", "n", "0"], "n = 0"),
        (["-p", "judges", "[keywrd]"], "did you mean 'keyword'"),
        (["-p", "judges", "[7]"], "element 1 = 7: input should be a valid string or"),
        (["-p", "reviewer", "nobody"], "reviewer 'nobody'"),
        (["-p", "n", "2.5"], "n = 2.5"),
        (["-p", "n", "true"], "n = True"),
        (["-p", "kinds", "a"], "kinds"),
        (["-p", "settings", "vicuna"], "takes dict"),
        (["-p", "settings", "{dtyp: float32}"], "did you mean 'dtype'"),
        (["-p", "alpha", "[1"], "alpha"),
        (["-p", "model", "no-such-model-anywhere"], "no-such-model-anywhere"),
        (["-p", "data", "no-such-data"], "no-such-data"),
        (["-p", "data", "vlsafe"], "cmrm data check vlsafe --fetch"),
        (["--only", "07"], "07"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(desk, arguments, words, home, monkeypatch):
    monkeypatch.setenv("CMRM_DATA", str(home))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    shutil.rmtree(home / "coco")
    done = run(desk, *arguments)
    assert done.exit_code == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not desk.folder.exists()


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("timout: 5", "a profile has no 'timout'; did you mean 'timeout'?"),
        ("timeout: soon", "timeout = 'soon'"),
        ("timeout: 0", "timeout = 0"),
        ("description: [a]", "description = ['a']"),
        ("parameters: [n]", "parameters = ['n']"),
        ("parameters: {n: [1]}", "parameter n = [1]"),
        ("notebooks: {a: 1}", "notebooks = {'a': 1}"),
        ("notebooks: []", "notebooks = []"),
        ("notebooks: [7]", "no notebook 07"),
        ("models: organism", "models = 'organism': input should be a valid list"),
        ("models:", "models = None"),
        ("models: []", "models = []"),
        ("models: [organism, null]", "models, element 2 = None"),
        ("models: [7]", "models, element 1 = 7"),
        ("models: [organism, organism]", "would share the folder organism"),
        ("models: [organism, no-such-model]", "no-such-model"),
        ("models: [organism, ../no-such-model]", "no-such-model"),
        ("- n", "small.yaml = ['n']"),
        ("", "small.yaml = None"),
        ("parameters: {n: 2, n: 3}", "small.yaml: not YAML (the key 'n' comes twice"),
        ("timeout: 5\ntimeout: 50", "the key 'timeout' comes twice"),
        ("parameters: {data: 2026-02-30}", "not YAML (day is out of range for month"),
        ("timeout: 1:30", "timeout = '1:30': it is no number"),
        ("timeout: 1:30.5", "timeout = '1:30.5': it is no number"),
    ],
)
def test_a_broken_profile_is_one_line(desk, profile, words):
    (profiles.PROFILES / "small.yaml").write_text(profile)
    done = run(desk)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert words in line
    assert not desk.folder.exists()


def test_numbers_mean_what_they_look_like():
    """YAML 1.1 reads 010 as 8, and an empty text as null, which stands for all samples."""
    pairs = [("n", "010"), ("sizes", "[08, +010, 0x10, 0b11]"), ("alphas", "[1e-1, 010.5, .5]")]
    given = profiles.given_parameters(pairs)
    assert given == {"n": 10, "sizes": ["08", 10, 16, 3], "alphas": ["1e-1", 10.5, 0.5]}
    checked = profiles.check_parameters(given, profiles.numbered_notebooks("09"))
    assert next(iter(checked.values()))["sizes"] == [8, 10, 16, 3]
    for text in ("", " "):
        with pytest.raises(profiles.InputError, match="parameter n: no value is given"):
            profiles.given_parameters([("n", text)])
    with pytest.raises(profiles.InputError, match="parameter n: it is given twice"):
        profiles.given_parameters([("n", "5"), ("out", "a"), ("n", "6")])


def test_models_of_a_profile_have_folders_of_their_own(desk, family_folders, monkeypatch):
    """A folder is found from where the command runs; the run never lies in the model's folder."""
    here = desk.folder.parent
    for name in ("mine", "theirs"):
        (here / name).mkdir()
        source = family_folders["llava"]
        without = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(source, here / name / "llava", ignore=without)
    monkeypatch.chdir(here)
    profile = profiles.PROFILES / "small.yaml"
    profile.write_text("models: [organism, mine/llava]\nnotebooks: [1]")
    _, jobs = profiles.planned_jobs("small", [], None, None)
    assert [job.folder.name for job in jobs] == ["organism", "llava"]
    assert {job.folder.parent.name for job in jobs} == {"small"}
    (shared,) = jobs[1].notebooks.values()
    assert shared["model"] == str(here / "mine" / "llava")
    assert [job.folder for job in profiles.planned_jobs(str(profile), [], None, None)[1]] == [
        job.folder for job in jobs
    ]
    profile.write_text("models: [mine/llava, theirs/llava]")
    with pytest.raises(profiles.InputError, match="share the folder llava"):
        profiles.planned_jobs("small", [], None, None)
    assert profiles._folder_name("llava-hf/llava-1.5-7b-hf") == "llava-hf--llava-1.5-7b-hf"


def test_another_environments_kernel_is_not_taken(desk, tmp_path, monkeypatch):
    """Nor another backend: the figures are shown in the notebook, and no progress bar is."""
    kernel = tmp_path / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    ran = tmp_path / "other-kernel-ran"
    argv = ["/bin/sh", "-c", f"touch {ran}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "P", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("MPLBACKEND", "pdf")
    monkeypatch.setenv("TQDM_DISABLE", "")
    desk.write(
        f"{FINISH}import sys, matplotlib; print(sys.executable, matplotlib.get_backend())\n"
        "import tqdm; print('bar', tqdm.tqdm([]).disable)"
    )
    done = run(desk)
    assert done.exit_code == 0, done.output
    page = (desk.folder / "report.html").read_text()
    assert f"{sys.executable} " in page
    assert "inline" in page
    assert "bar True" in page
    assert not ran.exists()


def test_a_kernel_that_does_not_start(desk, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    done = run(desk)
    assert done.exit_code == 1
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("cmrm: "))
    assert line.startswith("cmrm: 01_small.ipynb: no kernel starts (Kernel died")
    assert "Traceback" not in done.stderr


def test_settings_of_the_model_reach_the_notebook(desk):
    desk.write(FINISH + 'print(settings["system"], settings["batch_size"] + 1)')
    done = run(desk, "-p", "settings", "{system: vicuna, batch_size: 4}")
    assert done.exit_code == 0, done.output
    assert "vicuna 5" in (desk.folder / "report.html").read_text()


def test_a_models_folder_is_found_from_where_the_command_runs(desk, family_folders, monkeypatch):
    """Notebooks run elsewhere; and the weights are left for them to load."""
    folder = desk.folder.parent / "mine"
    shutil.copytree(family_folders["llava"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.chdir(folder.parent)
    desk.write(FINISH + "print(model)")
    done = run(desk, "-p", "model", "mine")
    assert done.exit_code == 0, done.output
    assert str(folder) in (desk.folder / "report.html").read_text()


def test_folders_and_prompts_of_judges_and_reviewers_are_found_too(desk, monkeypatch):
    here = desk.folder.parent
    (here / "critic").mkdir()
    (here / "p.txt").write_text("{query} {response}")
    monkeypatch.chdir(here)
    desk.write(FINISH + "print(reviewer, judges)")
    judges = "[keyword, llama-3-helps=critic, {judge: harmbench, model: critic, prompt: p.txt}]"
    done = run(desk, "-p", "reviewer", "critic", "-p", "judges", judges)
    assert done.exit_code == 0, done.output
    page = html.unescape((desk.folder / "report.html").read_text())
    critic = str(here / "critic")
    asked = ["keyword", f"llama-3-helps={critic}"]
    last = {"judge": "harmbench", "model": critic, "prompt": str(here / "p.txt")}
    assert f"{critic} {[*asked, last]}" in page


@pytest.mark.parametrize("name", profiles.profile_names())
def test_committed_profiles(name):
    """Their parameters are the notebooks', and their settings those of load_vlm."""
    profile = profiles.load_profile(name)
    parameters = dict(profile["parameters"])
    settings = parameters.pop("settings", {})
    profiles.check_parameters(parameters, profiles.numbered_notebooks(profile.get("notebooks")))
    known = {*inspect.signature(load_vlm).parameters, *PLACEMENT, *WHERE}
    assert set(settings) <= known - {"name_or_path", "from_pretrained"}
    assert len(profile["description"]) > 40


def test_what_needs_no_torch_is_checked_first():
    """So that a mistyped number is refused at once, whatever settings stand before it."""
    given = {"settings": {"dtyp": 1}, "grids": {"no": 1}, "alphas": ["high"]}
    with pytest.raises(InputError, match="alphas, element 1 = 'high'"):
        profiles.check_parameters(given, profiles.numbered_notebooks("06"))


def test_all_samples_and_a_revision_from_a_profile_given_as_a_path(desk, monkeypatch):
    path = desk.folder.parent / "mine.yaml"
    path.write_text("parameters: {n: null, model: someone/model, settings: {revision: v2}}")
    looked = {}
    monkeypatch.setattr("cmrm_utils.loading.find_model", lambda *_, **where: looked.update(where))
    _, (job,) = profiles.planned_jobs(str(path), [], None, None)
    (given,) = job.notebooks.values()
    assert job.folder.name == "mine"
    assert given["n"] is None
    assert given["settings"] == looked == {"revision": "v2"}


def test_a_file_of_data_is_found_from_where_the_command_is_called(desk, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "my.jsonl").write_text('{"id": "a", "query": "q"}\n')
    done = run(desk, "-p", "data", "my.jsonl")
    assert done.exit_code == 0, done.output
    assert f"data {tmp_path}/here/my.jsonl" in (desk.folder / "report.html").read_text()


def test_unknown_and_broken_profiles(desk):
    runner = CliRunner()
    done = runner.invoke(cli, ["run", "smal"])
    assert done.exit_code == 2
    assert "smal" in done.stderr
    assert "small" in done.stderr
    (profiles.PROFILES / "small.yaml").write_text("parameters: [")
    assert runner.invoke(cli, ["run", "small"]).exit_code == 2
    (profiles.PROFILES / "small.yaml").write_text("wrong: 1")
    assert runner.invoke(cli, ["run", "small"]).exit_code == 2


def test_a_failing_cell_is_shown_with_its_notebook(desk):
    desk.write("1 / 0")
    done = run(desk)
    assert done.exit_code == 1
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert str(desk.folder / "01_small.ipynb") in done.stderr
    assert not (desk.folder / "manifests" / "01_small.json").exists()


def test_bad_input_found_inside_a_notebook_exits_with_2(desk):
    desk.write("from cmrm_utils import InputError\nraise InputError('the data set is empty')")
    done = run(desk)
    assert done.exit_code == 2
    assert "the data set is empty" in done.stderr


PID = "import os, time; from pathlib import Path; Path(out, 'pid').write_text(str(os.getpid()))\n"


def assert_gone(desk):
    """The kernel that wrote its number has ended, and been waited for."""
    with pytest.raises(ProcessLookupError):
        os.kill(int((desk.folder / "pid").read_text()), 0)


def test_a_stuck_cell_times_out(desk):
    desk.write(f"{PID}time.sleep(60)", timeout=3)
    done = run(desk)
    assert done.exit_code == 1
    assert "01_small.ipynb: a cell ran longer than 3 s" in done.stderr
    assert_gone(desk)


def test_a_dead_kernel(desk):
    desk.write(f"{PID}os._exit(1)")
    done = run(desk)
    assert done.exit_code == 1
    assert "01_small.ipynb: the kernel died" in done.stderr
    assert "Traceback" not in done.stderr


def forget_tasks():
    """What a stopped run leaves waiting, and the end of the process would have ended."""
    loop = ensure_event_loop()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


KEEP = """
from cmrm_utils.store import Response, Responses
kept = Responses(Path(out, "responses.jsonl"), {})
with kept.appending() as sink:
    print("kept", [sink.get(name) is not None for name in "ab"])
    sink.add([("b" if sink.get("a") else "a", Response("Zib.", (1,), True))])
"""


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end(desk, told):
    """At once and in one line, kernel and all; the same command goes on where it was."""

    def tell():
        while not (desk.folder / "pid").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), told)

    desk.write(f"import os, time; from pathlib import Path\n{KEEP}    {PID}    time.sleep(60)")
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    done = run(desk)
    teller.join()
    forget_tasks()
    assert done.exit_code == 130
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"cmrm: stopped; finished work is kept in {desk.folder}")
    assert "Traceback" not in done.output
    assert_gone(desk)
    assert not (desk.folder / "manifests" / "01_small.json").exists()
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    desk.write(f"from pathlib import Path{KEEP}{FINISH}")
    done = run(desk)
    assert done.exit_code == 0, done.output
    assert "kept [True, False]" in (desk.folder / "report.html").read_text().replace("&#x27;", "")


def test_a_stop_counts_whatever_it_breaks(tmp_path, capsys):
    """The library that was cut off may raise an error of its own."""

    def cut_off():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("no event loop") from None

    with pytest.raises(SystemExit) as end, workbook.stopping(tmp_path):
        cut_off()
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("cmrm: stopped;")
    with pytest.raises(RuntimeError, match="full"), workbook.stopping(tmp_path):
        raise RuntimeError("full")


def test_two_runs_of_one_folder(desk):
    desk.folder.mkdir()
    with locked(desk.folder / "report.html"):
        done = run(desk)
    assert done.exit_code == 2
    assert f"report.html is being written by process {os.getpid()} " in done.stderr
    assert not (desk.folder / "01_small.ipynb").exists()
    assert run(desk).exit_code == 0


def test_a_disk_that_is_full(desk, monkeypatch):
    """In the notebook that is executed, or in what it writes: a line, and exit code 2."""

    def full(self, buffer, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(papermill.iorw.LocalHandler, "write", full)
        done = run(desk)
    assert done.exit_code == 2
    assert "01_small.ipynb: cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr
    desk.write(
        "import os; from pathlib import Path; from cmrm_utils.store import write_json\n"
        "def full(*_): raise OSError(28, 'No space left on device')\n"
        "os.replace = full\nwrite_json(Path(out, 'x.json'), 1)"
    )
    done = run(desk)
    assert done.exit_code == 2
    assert "x.json: cannot be written (No space left on device)" in done.stderr
    desk.write()
    assert run(desk).exit_code == 0


def test_a_run_folder_that_cannot_be_made(desk):
    (file := desk.folder).write_text("a file")
    desk.folder = file / "run"
    done = run(desk)
    assert done.exit_code == 2
    assert f"Directory '{file}' is a file" in done.stderr


def test_a_notebook_that_leaves_early_is_no_success(desk):
    """sys.exit(0) in a cell skips the rest and looks like success to papermill."""
    desk.write("import sys; sys.exit(0)")
    done = run(desk)
    assert done.exit_code == 1
    assert "01_small" in done.stderr


def test_help_of_every_command():
    runner = CliRunner()
    for name in ("", *cli.commands):
        done = runner.invoke(cli, [*([name] if name else []), "--help"])
        assert done.exit_code == 0
        assert len(done.output) > 100


def test_unknown_variant():
    done = CliRunner().invoke(cli, ["train-organism", "--variant", "tall"])
    assert done.exit_code == 2
    assert "tall" in done.stderr


def test_the_report_shows_the_responses(judged_run):
    workbook.report(judged_run, [])
    page = (judged_run / "report.html").read_text()
    assert "harmful: complied → refused (1 of 1 shown)" in page
    assert "benign: complied → neither (1 of 1 shown)" in page


def test_where_a_model_comes_from_is_asked_before_anything_starts(desk, monkeypatch):
    """The revision of a profile's settings reaches the look at the model too."""
    asked = {}

    def look(name, **where):
        asked.update(where)
        raise InputError("looked")

    monkeypatch.setattr("cmrm_utils.loading.find_model", look)
    settings = "{revision: v2, cache_dir: here, batch_size: 3, trust_remote_code: true}"
    done = run(desk, "-p", "model", "someone/model", "-p", "settings", settings)
    assert (done.exit_code, done.stderr) == (2, "cmrm: looked\n")
    assert asked == {"revision": "v2", "cache_dir": "here", "trust_remote_code": True}


def test_a_profile_of_models_that_must_be_trained_says_how(tmp_path, monkeypatch):
    monkeypatch.setattr("cmrm_utils.paths.ORGANISMS", tmp_path / "organisms")
    done = CliRunner().invoke(cli, ["run", "full", "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    how = "cmrm train-organism --variant organism --seed 1 --out organisms/organism-seed1"
    assert line == f"cmrm: cannot load model 'organism-seed1': it must first be trained, by `{how}`"
    assert not (tmp_path / "run").exists()
