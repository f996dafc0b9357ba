"""What the tests of notebook 09 have in common."""

from cmrm_utils.studies import sweep
from cmrm_utils.studies.notebook import Notebook
from cmrm_utils.studies.selection import Choice

P = {
    "alphas": [0.5],
    "gate_alphas": [0.5],
    "doses": [0.3],
    "n_validation": 2,
    "n_test": 2,
    "n_sets": 2,
}
P |= {"sizes": [1, 3], "draws": 2}

PUBLIC = "vlsafe+xstest+scienceqa@test+llava-bench-coco@test"


def open_nb(family_folders, folder, data="organism"):
    model = str(family_folders["llava"])
    return Notebook.open("09_x", model=model, data=data, out=folder, max_new_tokens=4)


def at_half(nb):
    """CMRM as if alpha 0.5 had been chosen: a random model gains nothing."""
    methods = sweep.levels(nb, P["alphas"])
    return sweep.Chosen(methods, dict.fromkeys(methods, Choice({"alpha": 0.5}, None, "")))
