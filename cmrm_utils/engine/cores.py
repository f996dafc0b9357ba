"""Threads that fit the cores that other processes leave free.

Two threads that share one core wait for each other at every product. On a busy machine one thread
is faster than two, so the number follows the load. It changes no number: a product's sums are
split over outputs, not over threads (a test says so).
"""

import os
import time
from pathlib import Path

import torch

STAT = Path("/proc/stat")
"""Linux's count of used processor time. Without this file the number of threads stays."""

SHORTEST, LONGEST = 0.1, 2.0
"""Seconds from one look to the next. After a longer pause, the earlier look no longer counts."""


class Cores:
    """The load of the machine, and the number of threads that suits it."""

    def __init__(self) -> None:
        self._most = self._set = torch.get_num_threads()
        self._last: tuple[float, float] | None = None

    def give_way(self) -> None:
        """Use as many threads as there are free cores: at least one, at most what torch began with.

        Call it before a forward pass; it looks at most ten times a second. A number that somebody
        sets with ``torch.set_num_threads`` becomes the new most.
        """
        now = time.monotonic()
        if (self._last and now - self._last[0] < SHORTEST) or not STAT.exists():
            return
        if torch.get_num_threads() != self._set:
            self._most = self._set = torch.get_num_threads()
        others = _used() - time.process_time()
        if self._last and (passed := now - self._last[0]) < LONGEST:
            free = (os.cpu_count() or 1) - round((others - self._last[1]) / passed)
            if (suits := max(1, min(self._most, free))) != self._set:
                torch.set_num_threads(suits)
                self._set = suits
        self._last = now, others


def _used() -> float:
    """Seconds that all processes have computed since the machine started, over all cores."""
    user, nice, system = STAT.read_text().split(maxsplit=4)[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


CORES = Cores()
