"""What the tests of notebook 09 have in common."""

from cmrm_utils.studies.first_token import FirstTokens
from cmrm_utils.studies.notebook import Notebook

PUBLIC = "vlsafe+xstest+scienceqa@test+llava-bench-coco@test"

OPENERS = (5, 9)
"""What the tests take for tokens that open refusals: a random model has none."""


def open_nb(family_folders, folder, data="everyday"):
    model = str(family_folders["llava"])
    return Notebook.open("09_x", model=model, data=data, out=folder, max_new_tokens=4)


def first_tokens(nb, monkeypatch, n=1):
    monkeypatch.setattr(FirstTokens, "openers", OPENERS)
    return FirstTokens(nb, n)
