"""The committed notebooks, run anew by nbval: they still give what they show."""

import json
import os
import subprocess
import sys

import pytest
from committed import code_cells, default

from cmrm_utils.bundled.fetch import smollm2
from cmrm_utils.errors import InputError
from cmrm_utils.paths import ROOT, STORED

TOLERANCE, ODDS_TOLERANCE = 0.08, 0.05
"""Greedy decoding can flip a token between processors; a rate may move by this much.

Log-odds, which need no decoding, move less.
"""


def unreached():
    """Why the language model from the package registry cannot be had; empty where it can."""
    try:
        smollm2()
    except InputError as error:
        return str(error)
    return ""


def runnable(notebooks):
    """Those of some notebooks that can run here, and why the others cannot."""
    asking = [path for path in notebooks if default(path, "model").startswith("smollm2")]
    why = unreached() if asking else ""
    return [path for path in notebooks if not (why and path in asking)], why


def execute(notebooks, home):
    """Run notebooks by nbval, in order, with a fresh home; return nbval's process."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-c", os.devnull, "--rootdir", str(ROOT / "notebooks")]
    return subprocess.run(
        [*command, *map(str, notebooks)],
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


def numbers(value, name=""):
    """Every number of nested JSON, by its path."""
    if isinstance(value, dict):
        return {
            k: v for key, each in value.items() for k, v in numbers(each, f"{name}/{key}").items()
        }
    return {name: value} if isinstance(value, (int, float)) else {}


class Regression:
    """Tests of some notebooks, which share one fresh home.

    The notebooks are told in two files, since two processes share the files of tests.
    """

    notebooks = ()

    @pytest.fixture(scope="class")
    def executed(self, tmp_path_factory):
        """The home, nbval's process, and the notebooks that it ran; they run once."""
        runs, why = runnable(self.notebooks)
        if not runs:
            pytest.skip(why)
        home = tmp_path_factory.mktemp("home")
        return home, execute(runs, home), runs

    def pytest_generate_tests(self, metafunc):
        if "notebook" in metafunc.fixturenames:
            asking = [path for path in self.notebooks if default(path, "out")]
            metafunc.parametrize("notebook", asking, ids=lambda path: path.stem)

    @pytest.fixture
    def written(self, executed, notebook):
        """A notebook's name, and the run folder that it wrote when nbval ran it."""
        home, _, runs = executed
        if notebook not in runs:
            pytest.skip(unreached())
        return notebook.stem, home / default(notebook, "out")

    def test_every_cell_passes(self, executed):
        _, done, runs = executed
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert f"{sum(len(code_cells(path)) for path in runs)} passed" in done.stdout

    def test_fine_figures_within_tolerance(self, written):
        name, run = written
        stored = numbers(json.loads((STORED / f"metrics_{name}.json").read_text()))
        found = numbers(json.loads((run / "metrics" / f"{name}.json").read_text()))
        assert stored.keys() == found.keys()
        assert stored
        for key, value in stored.items():
            odds = key.startswith("/log-odds")
            most = {"abs": ODDS_TOLERANCE} if odds else {"abs": TOLERANCE, "rel": 0.02}
            assert found[key] == pytest.approx(value, **most), key

    def test_manifest_names_what_was_written(self, written):
        name, run = written
        manifest = json.loads((run / "manifests" / f"{name}.json").read_text())
        assert manifest["notebook"] == name
        assert manifest["files"]
        assert all((run / file).is_file() for file in manifest["files"])
