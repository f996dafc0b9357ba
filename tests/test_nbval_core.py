from committed import CORE, PLAYGROUND
from regression import Regression


class TestCore(Regression):
    """Notebooks 00 to 05."""

    notebooks = (PLAYGROUND, *CORE)
