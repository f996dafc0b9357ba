"""Set once, before torch is loaded, wherever the project starts; a user's own value stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmrm_utils.spinning import COUNT, SPINS, WAITS

ROOT = Path(__file__).parent.parent
SAY = f"import os; print(os.environ.get({SPINS!r}), os.environ.get({WAITS!r}))"


def said(code, env=(), command=(sys.executable, "-c")):
    bare = {name: value for name, value in os.environ.items() if name not in (SPINS, WAITS)}
    bare |= {"PYTHONPATH": str(ROOT), **dict(env)}
    done = subprocess.run(
        [*command, code], env=bare, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "env", "wanted"),
    [
        ("import cmrm_utils", {}, f"{COUNT} None"),
        ("import cmrm_utils, torch", {}, f"{COUNT} None"),
        ("from cmrm_utils.cli.main import cli", {}, f"{COUNT} None"),
        ("import torch, cmrm_utils", {}, "None None"),
        ("import cmrm_utils", {SPINS: "7"}, "7 None"),
        ("import cmrm_utils", {WAITS: "ACTIVE"}, "None ACTIVE"),
        ("import cmrm_utils", {SPINS: ""}, " None"),
    ],
)
def test_it_is_set_before_torch_alone(code, env, wanted):
    assert said(f"{code}; {SAY}", env) == wanted


def test_the_package_itself_loads_no_torch():
    assert said("import cmrm_utils, sys; print('torch' in sys.modules)") == "False"


def test_kernels_have_it_from_who_starts_them():
    """Notebooks may load torch first: the command's environment is theirs."""
    code = (
        "import subprocess, sys\n"
        "import cmrm_utils.jobs.kernels\n"
        f"subprocess.run([sys.executable, '-c', {'import torch; ' + SAY!r}])"
    )
    assert said(code) == f"{COUNT} None"


def test_the_makefile_gives_it_to_jupyterlab():
    """The same number, and only where neither variable is the user's."""
    lab = f"printenv {SPINS} || echo none"
    rules = "include Makefile\nsay: ; @" + lab

    def made(env):
        return said(rules, env, ("sh", "-c", 'printf "%s" "$0" | make -s -f - say'))

    assert made({}) == COUNT
    assert made({SPINS: "7"}) == "7"
    assert made({WAITS: "PASSIVE"}) == "none"
