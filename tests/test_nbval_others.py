from committed import CORE, NOTEBOOKS, PLAYGROUND
from regression import Regression


class TestOthers(Regression):
    """Notebooks 06 and on. Those choose alpha anew that find no choice of notebook 04."""

    notebooks = tuple(path for path in NOTEBOOKS if path not in (PLAYGROUND, *CORE))
