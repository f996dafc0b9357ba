"""The playground in JupyterLab, in a real browser."""

import json
import os
import signal
import subprocess
import sys

import nbformat
import pytest
from browser import browser, until
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from cmrm_utils.paths import NOTEBOOKS, ROOT


@pytest.fixture
def server(tmp_path, family_folders):
    """The address of a server that has the playground, on a tiny random model."""
    notebook = load_notebook_node(str(NOTEBOOKS / "00_playground.ipynb"))
    asked = {
        "model": str(family_folders["llava"]),
        "data": "organism",
        "out": str(tmp_path / "run"),
    }
    asked |= {"alphas": [0.5], "max_new_tokens": 4}
    root = tmp_path / "root"
    root.mkdir()
    nbformat.write(parameterize_notebook(notebook, asked), root / "playground.ipynb")
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.root_dir={root}", "--ServerApp.port=0", "--IdentityProvider.token="]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    places = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "RUNTIME")}
    places |= {f"JUPYTERLAB_{x}_DIR": str(tmp_path / x) for x in ("SETTINGS", "WORKSPACES")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **places, "PYTHONPATH": path, "TQDM_DISABLE": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process, tmp_path / "RUNTIME" / f"jpserver-{process.pid}.json"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def test_moving_alpha_changes_what_is_shown(server, tmp_path):
    process, note = server
    with browser(tmp_path / "profile") as driver:

        def the_server_is_up():
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            return note.is_file() and note.read_text().endswith("}")

        until(driver, the_server_is_up)
        driver.get(json.loads(note.read_text())["url"] + "doc/tree/playground.ipynb")

        def the_notebook_is_open():
            ready = (
                "return Boolean(window.jupyterapp) && document.querySelectorAll('.jp-Cell').length"
            )
            return driver.execute_script(ready) > 10

        until(driver, the_notebook_is_open)
        run = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
        driver.execute_script(run)

        def shown():
            """The heads and cells of the tables under the controls."""
            tables = "[...document.querySelectorAll('.jupyter-widgets table')]"
            texts = f"return {tables}.map((t) => t.innerText)"
            return driver.execute_script(texts)

        def answers_are_shown():
            tables = shown()
            return len(tables) == 2 and "alpha 0.2\n" in tables[0] + "\n" and tables

        before = until(driver, answers_are_shown, 180)
        (handle,) = (
            each
            for each in driver.find_elements(By.CSS_SELECTOR, ".widget-slider .noUi-handle")
            if each.get_attribute("aria-valuemax") == "1.0"
        )
        handle.send_keys(Keys.ARROW_RIGHT)

        def alpha_has_moved():
            tables = shown()
            return len(tables) == 2 and "alpha 0.21" in tables[0]

        until(driver, alpha_has_moved)
        handle.send_keys(Keys.END)

        def the_strongest_edit_is_shown():
            tables = shown()
            return len(tables) == 2 and "CMRM dataset, alpha 1" in tables[0] and tables

        after = until(driver, the_strongest_edit_is_shown)
        assert before[0].splitlines()[1:] != after[0].splitlines()[1:]  # the answers
        assert before[1] != after[1]  # the likeliest words
