"""The committed notebooks, run anew: they still give what they show."""

import json
import os
import subprocess
import sys
from functools import cache

import pytest
from committed import ASKING, NOTEBOOKS, code_cells, default

from cmrm_utils.bundled.fetch import smollm2
from cmrm_utils.errors import InputError
from cmrm_utils.paths import ROOT, STORED

TOLERANCE, ODDS_TOLERANCE = 0.08, 0.05
"""Greedy decoding can flip a token between processors; a rate may move by this much.

Log-odds, which need no decoding, move less.
"""


@pytest.fixture(scope="session")
def unreached():
    """Why the language model from the package registry cannot be had; empty where it can."""
    try:
        smollm2()
    except InputError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def runnable(unreached):
    """The notebooks that can run here."""
    of_smollm2 = [path for path in NOTEBOOKS if default(path, "model").startswith("smollm2")]
    return [path for path in NOTEBOOKS if not (unreached and path in of_smollm2)]


@pytest.fixture(scope="session")
def executed(tmp_path_factory, runnable):
    """A function of a run folder: its notebooks run by nbval in a fresh home, in order.

    It returns the home and nbval's process. Notebooks run once, however often it is called.
    Without the package registry, those run that need no language model from there.
    """

    @cache
    def run(folder):
        home = tmp_path_factory.mktemp("home")
        command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
        command += ["-c", os.devnull, "--rootdir", str(ROOT / "notebooks")]
        done = subprocess.run(
            [*command, *(str(path) for path in runnable if default(path, "out") == folder)],
            env={
                **os.environ,
                "CMRM_HOME": str(home),
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
                "TQDM_DISABLE": "1",
            },
            cwd=ROOT / "notebooks",
            capture_output=True,
            text=True,
            check=False,
        )
        return home, done

    return run


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def ran(request, runnable, unreached):
    """A notebook that nbval can run here."""
    if request.param not in runnable:
        pytest.skip(unreached)
    return request.param


@pytest.fixture(params=ASKING, ids=lambda path: path.stem)
def written(request, executed, runnable, unreached):
    """A notebook's name, and the run folder that it wrote when nbval ran it."""
    path = request.param
    if path not in runnable:
        pytest.skip(unreached)
    home, _ = executed(default(path, "out"))
    return path.stem, home / default(path, "out")


def test_nbval(executed, ran):
    _, done = executed(default(ran, "out"))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    cells = sum(len(code_cells(p)) for p in NOTEBOOKS if default(p, "out") == default(ran, "out"))
    assert f"{cells} passed" in done.stdout


def numbers(value, name=""):
    """Every number of nested JSON, by its path."""
    if isinstance(value, dict):
        return {
            k: v for key, each in value.items() for k, v in numbers(each, f"{name}/{key}").items()
        }
    return {name: value} if isinstance(value, (int, float)) else {}


def test_fine_figures_within_tolerance(written):
    name, run = written
    stored = numbers(json.loads((STORED / f"metrics_{name}.json").read_text()))
    found = numbers(json.loads((run / "metrics" / f"{name}.json").read_text()))
    assert stored.keys() == found.keys()
    assert stored
    for key, value in stored.items():
        most = ODDS_TOLERANCE if key.startswith("/log-odds") else TOLERANCE
        assert found[key] == pytest.approx(value, abs=most, rel=0.02), key


def test_manifest_names_what_was_written(written):
    name, run = written
    manifest = json.loads((run / "manifests" / f"{name}.json").read_text())
    assert manifest["notebook"] == name
    assert manifest["files"]
    assert all((run / file).is_file() for file in manifest["files"])
