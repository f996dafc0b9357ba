"""The committed notebooks, for tests."""

import nbformat
import papermill

from cmrm_utils.jobs.profiles import is_core, numbered_notebooks
from cmrm_utils.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
ASKING = numbered_notebooks(None)
APPENDIX = [path for path in NOTEBOOKS if path not in ASKING]
CORE = [path for path in ASKING if is_core(path)]
PLAYGROUND, *RESEARCH = [path for path in ASKING if path not in CORE]
"""Of those that ask a model: the ones that a profile runs which names none, and the others."""


def code_cells(path):
    notebook = nbformat.read(path, as_version=4)
    return [c for c in notebook.cells if c.cell_type == "code"]


def default(path, name):
    """A notebook's own value of a parameter, as text; empty if it has no such parameter."""
    return papermill.inspect_notebook(str(path)).get(name, {}).get("default", "").strip("\"'")
