"""Threads that fit the cores that other processes leave free.

Two threads that share one core wait for each other at every product. On a busy machine one thread
is faster than two, so generation lets the number follow the load. The number of threads can change
the last digit of a sum. So states and logits are always computed by all threads, and so is whatever
comes after a generation: no vector, and no trial's id, depends on the load. A response could only
where two tokens are as likely as each other to the last digit.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

        Call it before a step of generation, within :meth:`shared`; it looks at most ten times a
        second. A number that somebody sets with ``torch.set_num_threads`` becomes the new most.
        """
        now = time.monotonic()
        if (self._last and now - self._last[0] < SHORTEST) or not STAT.exists():
            return
        self._heed_the_user()
        others = _used() - time.process_time()
        if self._last and (passed := now - self._last[0]) < LONGEST:
            free = (os.cpu_count() or 1) - round((others - self._last[1]) / passed)
            self._use(max(1, min(self._most, free)))
        self._last = now, others

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Let the number of threads follow the load, until the end of a ``with`` block."""
        try:
            yield
        finally:
            self._heed_the_user()
            self._use(self._most)

    def _heed_the_user(self) -> None:
        if torch.get_num_threads() != self._set:
            self._most = self._set = torch.get_num_threads()

    def _use(self, count: int) -> None:
        if count != self._set:
            torch.set_num_threads(count)
            self._set = count


def _used() -> float:
    """Seconds that all processes have computed since the machine started, over all cores."""
    user, nice, system = STAT.read_text().split(maxsplit=4)[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


CORES = Cores()
