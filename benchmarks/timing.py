"""Time: of candidates in turns, of one call, of a process of its own."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from qdrop.solver.estimate import wait_for


@dataclass(frozen=True)
class Timings:
    """Seconds of each candidate in each round."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Median seconds of a candidate."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Median over rounds of seconds of `name` over those of `base` in the same round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | None = None,
    warm_up: int = 1,
) -> Timings:
    """Time candidates in turns, so that a machine that slows down slows all of them.

    Args:
        candidates: Called without arguments, by name.
        rounds: How often each is timed; every other round goes backwards.
        device: Waited for before the clock is read, if it is a GPU.
        warm_up: Calls of each before the first that counts.
    """
    for candidate in candidates.values():
        for _ in range(warm_up):
            candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        names = list(candidates)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            seconds[name].append(seconds_of(candidates[name], device))
    return Timings(seconds)


def seconds_of(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall time of one call, with everything it left running on a GPU."""
    _wait_for(device)
    started = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - started


def printed_by(what: str, *arguments: str) -> str:
    """What a Python process of its own prints, for figures that depend on all that a process has done.

    Args:
        what: Its name where it fails.
        arguments: Of the interpreter, such as `-m` and a module.

    Raises:
        RuntimeError: If it fails; with what it said.
    """
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} failed: {done.stderr[-2000:]}")
    return done.stdout


def _wait_for(device: torch.device | None) -> None:
    if device is not None:
        wait_for(device)
