"""What a user sees while units learn: a bar over all of them, a line for each, and how long it will take."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import torch
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from qdrop.runtime.console import bar
from qdrop.solver.estimate import Estimate, duration, in_words, wait_for
from qdrop.solver.recon import UnitReport
from qdrop.solver.unit import Step

log = logging.getLogger("qdrop")
T = TypeVar("T")

REFRESH = 0.5
"""Seconds between two updates of the bar: each reads the loss, which waits for the device."""
LONG = 60.0
"""Seconds from which a reconstruction is long, so that it is told how long."""


def timed(steps: Iterable[T], name: str, count: int, device: torch.device) -> Iterator[T]:
    """Each of `count` steps on a device; says how long they take, once it is known to be long."""
    estimate = Estimate(count)
    for done, step in enumerate(steps, 1):
        yield step
        left = estimate.left(done, partial(wait_for, device))
        if left is not None and left > LONG:
            log.info("%s: some %s to go on this machine: %s iterations", name, duration(left), f"{count:,}")


class UnitProgress:
    """A bar over all units while they are reconstructed; says how long that takes, once it is known to be long.

    Args:
        costs: Names of the units in order, and what an iteration in one costs in proportion.
        iters: Iterations for each, in a phase.
        phases: How many phases.
    """

    def __init__(self, costs: Mapping[str, float], iters: int, phases: int = 1) -> None:
        self._costs, self._iters, self._all = costs, iters, iters * phases
        self._finished = self._updated = 0.0
        total = sum(costs.values())
        self._estimate = Estimate(total)
        self._bar = bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn(
                "iteration {task.fields[iteration]:,} of {task.fields[iters]:,}, loss {task.fields[loss]}, left"
            ),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("reconstructing", total=total, iteration=0, iters=self._all, loss="-")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, unit: str, step: Step) -> None:
        """Take note of one iteration of `unit`."""
        done = self._finished + self._costs[unit] * step.iteration / self._all
        left = self._estimate.left(done, step.reconstruction.item)
        if left is not None and left > LONG:
            log.info(in_words(left, self._iters, len(self._costs)))
        if not self._bar.disable and time.perf_counter() - self._updated > REFRESH:
            loss = f"{float(step.reconstruction):.4g}"
            self._bar.update(self._task, description=unit, completed=done, iteration=step.iteration, loss=loss)
            self._updated = time.perf_counter()

    def finish(self, report: UnitReport) -> None:
        """Take note that a unit is finished, by this run or an earlier one: its one line in the log."""
        number = list(self._costs).index(report.unit) + 1
        self._finished += self._costs[report.unit]
        self._bar.update(self._task, completed=self._finished)
        log.info(
            "%s (%d of %d): loss %.5g -> %.5g, %s",
            *(report.unit, number, len(self._costs)),
            *(report.loss_before, report.loss_after, duration(report.seconds)),
        )
