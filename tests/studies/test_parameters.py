"""What the parameters of the notebooks take."""

import re

import papermill
import pytest

from cmrm_utils import InputError
from cmrm_utils.jobs.profiles import numbered_notebooks
from cmrm_utils.paths import NOTEBOOKS
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.parameters import KINDS, check_own, declared

EVERY = [declared(path) for path in numbered_notebooks(None)]
BY_NAME = {name: parameter for known in EVERY for name, parameter in known.items()}


def test_defaults_are_what_is_declared():
    for known in EVERY:
        for name, parameter in known.items():
            assert parameter.check(parameter.default) == parameter.default, name
    assert set(KINDS) <= set(BY_NAME)
    assert all(
        parameter.annotation != "list" or name == "judges" for name, parameter in BY_NAME.items()
    )


SHIFTDC = {"tokens": "last", "strength": 1.0}
GRID = {"CMRM dataset": [{"alpha": 0.1}]}


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("alphas", ["1e-2", 0.1, 1], [0.01, 0.1, 1.0]),
        ("alpha", "2e-1", 0.2),
        ("n", "1e2", 100),
        ("n", None, None),
        ("n_test", None, None),
        ("grids", {"CMRM dataset": [{"alpha": "1e-1"}]}, GRID),
        ("grids", {"safety prompt": [{}]}, {"safety prompt": [{}]}),
        ("grids", {"ShiftDC": [{**SHIFTDC, "layers": [0, 3]}]}, None),
        ("settings", {"batch_size": "1e1", "system": None}, {"batch_size": 10, "system": None}),
        ("settings", {"device_map": "auto", "revision": "main"}, None),
        ("judges", ["keyword", "harmbench=folder"], None),
        ("sizes", ["1e1", 3], [10, 3]),
    ],
)
def test_numbers_that_were_written_as_text(name, given, meant):
    assert BY_NAME[name].check(given) == (given if meant is None and given else meant)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("alphas", [0.1, None], "alphas, element 2 = None"),
        ("alphas", [True], "alphas, element 1 = True"),
        ("alphas", [float("nan")], "finite number"),
        ("alphas", [float("inf")], "finite number"),
        ("alphas", ["inf"], "finite number"),
        ("alphas", ["high"], "alphas, element 1 = 'high'"),
        ("alphas", [], "alphas = []: it is empty"),
        ("alphas", [0.1, "1e-1"], "0.1 is in it twice"),
        ("alphas", None, "alphas = None"),
        ("alphas", "0.1", "alphas = '0.1'"),
        ("alpha", [0.1], "alpha = "),
        ("n", 0, "n = 0"),
        ("n", 2.5, "n = 2.5"),
        ("n_test", -1, "n_test = -1"),
        ("max_new_tokens", 0, "max_new_tokens = 0"),
        ("max_new_tokens", None, "max_new_tokens = None"),
        ("sizes", [1, 0], "sizes, element 2 = 0"),
        ("meaningless", ["blnk"], "did you mean 'blank'"),
        ("model", 7, "model = 7"),
        ("grids", [GRID], "grids = "),
        ("grids", {"CMRM datase": []}, "did you mean 'CMRM dataset'"),
        ("grids", {"CMRM dataset": []}, "CMRM dataset = []: it is empty"),
        ("grids", {"CMRM dataset": [{"alpah": 1}]}, "did you mean 'alpha'"),
        ("grids", {"CMRM dataset": [{"alpha": None}]}, "element 1, alpha = None"),
        ("grids", {"CMRM dataset": [{"alpha": 0.1}, {"alpha": "1e-1"}]}, "is in it twice"),
        ("grids", {"ShiftDC": [{"layers": "late"}]}, "it has no tokens"),
        ("grids", {"ShiftDC": [{**SHIFTDC, "layers": "lat"}]}, "'all' or 'late' or input should"),
        ("grids", {"ShiftDC": [{**SHIFTDC, "layers": [1, "a"]}]}, "layers, element 2 = 'a'"),
        ("grids", {"ShiftDC": [{**SHIFTDC, "layers": [True]}]}, "layers, element 1 = True"),
        ("grids", {"ShiftDC": [{**SHIFTDC, "layers": []}]}, "layers = []"),
        ("grids", {"refusal addition": [{"depth": 1.5, "strength": 1}]}, "depth = 1.5"),
        ("grids", {"VLM-Guard": [{"ungated": "lft", "m": 1, "alpha": 1}]}, "did you mean 'left'"),
        ("judges", ["keywrd"], "did you mean 'keyword'"),
        ("judges", ["keyword", "keyword"], "keyword is asked twice"),
        ("judges", [{"judge": "harmbench", "prompt": "/no/such"}], "/no/such"),
        ("judges", [{"judge": "harmbench", "model": 7}], "element 1, model = 7"),
        ("settings", {"dtyp": "float32"}, "did you mean 'dtype'"),
        ("settings", {"batch_size": 0}, "settings, batch_size = 0"),
        ("settings", {"bits": "four"}, "settings, bits = 'four'"),
        ("settings", {"pad_to_square": 1}, "settings, pad_to_square = 1"),
        ("settings", {"device": "gpu"}, "settings, device = 'gpu'"),
        ("settings", {"dtype": 32}, "settings, dtype = 32"),
        ("settings", {"revision": 7}, "settings, revision = 7"),
        ("settings", {"device_map": 5}, "valid string or input should be a valid dictionary"),
        ("vlguard", {"mixed": "{model}"}, "vlguard, mixed = '{model}'"),
    ],
)
def test_a_bad_value_is_one_line(name, value, words):
    """It names the parameter, the element and the notebook."""
    with pytest.raises(InputError) as raised:
        BY_NAME[name].check(value)
    line = str(raised.value)
    assert words in line
    assert f"parameter {name}" in line
    assert BY_NAME[name].notebook in line
    assert "\n" not in line


def test_the_first_cell_of_a_notebook_checks_its_own(family_folders, tmp_path):
    """For who runs it by papermill alone: nothing is loaded or written before."""
    own = {"model": str(family_folders["llava"]), "data": "organism", "out": str(tmp_path / "run")}
    for bad, words in ((["1e-2"], r"as text, write \[0\.01\]"), ([None], "element 1 = None")):
        with pytest.raises(InputError, match=rf"alphas.*{words}.*04_safety_evaluation\.ipynb"):
            Notebook.open("04_safety_evaluation", **own, parameters={**own, "alphas": bad})
    assert not (tmp_path / "run").exists()
    check_own("04_safety_evaluation", {**own, "alphas": [0.5], "unrelated": None})
    check_own("my own copy", {"alphas": None})


def test_every_notebook_checks_its_own():
    for path in numbered_notebooks(None):
        assert re.search(r"parameters\W+globals\(\)", path.read_text(encoding="utf-8"))


def test_papermill_alone_stops_in_the_first_cell(tmp_path):
    path = NOTEBOOKS / "04_safety_evaluation.ipynb"
    given = {"alphas": ["1e-2"], "out": str(tmp_path / "run")}
    with pytest.raises(papermill.PapermillExecutionError) as raised:
        papermill.execute_notebook(
            str(path), str(tmp_path / "x.ipynb"), given, cwd=str(NOTEBOOKS), progress_bar=False
        )
    assert raised.value.ename == "InputError"
    assert "alphas" in raised.value.evalue
    assert not (tmp_path / "run").exists()
