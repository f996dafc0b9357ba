"""Timing several ways of one job side by side, on a machine that others may be using too."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One way of doing a job.

    Attributes:
        run: does it; what is timed.
        setup: makes the arguments of ``run``, untimed, anew each time, so that nothing that the
            engine keeps from one call to the next makes a later round cheaper.
    """

    run: Callable[..., Any]
    setup: Callable[[], tuple[Any, ...]] = tuple


@dataclass(frozen=True)
class Ratio:
    """Ratios round by round: each compares timings that were taken next to each other.

    Attributes:
        rounds: one ratio a round.
    """

    rounds: tuple[float, ...]

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> "Ratio":
        """``above / below``, round by round."""
        return cls(tuple(a / b for a, b in zip(above, below, strict=True)))

    @property
    def median(self) -> float:
        """The middle ratio."""
        return median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Below the first lies a quarter of the ratios, above the second another."""
        low, _, high = quantiles(self.rounds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Timings:
    """Seconds of each case, round by round, and what each gave in its last round."""

    seconds: Mapping[str, tuple[float, ...]]
    outputs: Mapping[str, Any]

    def median(self, name: str) -> float:
        """A case's middle time in seconds."""
        return median(self.seconds[name])

    def ratio(self, above: str, below: str) -> Ratio:
        """How many times the time of ``below`` the case ``above`` takes."""
        return Ratio.of(self.seconds[above], self.seconds[below])


def measure(
    cases: Mapping[str, Case], rounds: int, *, clock: Callable[[], float] = perf_counter
) -> Timings:
    """Time the cases in turn, round after round, each once before and uncounted.

    Every round begins with another case, so that none always follows the same neighbour.

    Args:
        cases: the ways to compare, by name.
        rounds: how many timings of each, two or more.
        clock: seconds.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    outputs: dict[str, Any] = {}
    for index in range(-1, rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            given = cases[name].setup()
            gc.collect()
            gc.disable()
            try:
                _settle()
                start = clock()
                outputs[name] = cases[name].run(*given)
                _settle()
                if index >= 0:
                    seconds[name].append(clock() - start)
            finally:
                gc.enable()
    return Timings({name: tuple(times) for name, times in seconds.items()}, outputs)


def _settle() -> None:
    """Wait for the GPU: it works on after a call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
