"""How long OpenMP's threads spin while they wait for each other. It imports next to nothing.

A thread that spins keeps its core. On a machine of one's own that is quickest; where another
process computes too, the threads spin for one that has no core to run on, and everything takes
twenty times as long. With a short spin they soon sleep instead.
"""

import os
import sys

SPINS, WAITS = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"

COUNT = "10000"
"""Rounds of waiting before a thread sleeps; libgomp's own default is 300000."""


def spin_less() -> None:
    """Set it for this process and those that it starts, unless the user has set either variable.

    It is read when torch is loaded, so afterwards this does nothing. It is a variable of GNU's
    OpenMP, which torch's wheels for Linux bring along; on macOS they bring LLVM's, which does not
    know it, and by its own default (``KMP_BLOCKTIME``) sleeps after 0.2 seconds.
    """
    if "torch" not in sys.modules and not {SPINS, WAITS} & os.environ.keys():
        os.environ[SPINS] = COUNT
