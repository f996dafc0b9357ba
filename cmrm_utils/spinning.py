"""A short spin for OpenMP's waiting threads. This file must import next to nothing.

A thread that spins while it waits keeps its core busy. That is fastest on an idle machine. If
another process computes too, threads spin while the one they wait for has no core, and everything
takes many times as long. After a short spin they sleep instead.
"""

import os
import sys

SPINS, WAITS = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"

COUNT = "100000"
"""Rounds of spinning before a thread sleeps; libgomp's default is 300000."""


def spin_less() -> None:
    """Shorten the spin for this process and its children, unless the user has set a variable.

    The variable is read when torch loads, so later calls do nothing. It belongs to GNU's OpenMP,
    which torch's wheels for Linux contain. Those for macOS contain LLVM's, which ignores it and
    sleeps after 0.2 seconds by default (``KMP_BLOCKTIME``).
    """
    if "torch" not in sys.modules and not {SPINS, WAITS} & os.environ.keys():
        os.environ[SPINS] = COUNT
