"""What a user sees while it works: one console for log and bars, on standard error; in a pipe lines and no bar.

for batch in track(loader, "evaluating"):
...
"""

import functools
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from qdrop.solver.estimate import Estimate, duration, in_words
from qdrop.solver.recon import UnitReport
from qdrop.solver.unit import Step

log = logging.getLogger("qdrop")
T = TypeVar("T")

REFRESH = 0.5
"""Seconds between two updates of the bar: each reads the loss, which waits for the device."""
LONG = 60.0
"""Seconds from which a reconstruction is long, so that it is told how long."""


@functools.cache
def console() -> Console:
    """The console of this process: what writes to another tears the bar apart."""
    return Console(stderr=True)


class ConsoleHandler(logging.Handler):
    """Writes log records to the console, above a bar if there is one; in a pipe a record is one line, however long."""

    def emit(self, record: logging.LogRecord) -> None:
        """See :meth:`logging.Handler.emit`."""
        screen = console()
        whole = not screen.is_terminal
        screen.print(self.format(record), markup=False, highlight=False, emoji=False, soft_wrap=whole)


@contextmanager
def telling() -> Iterator[None]:
    """Inside: what the package says reaches the console, unless the caller has set up logging in a way of their own."""
    if log.hasHandlers() or log.level != logging.NOTSET:
        yield
        return
    handler = ConsoleHandler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def track(steps: Iterable[T], what: str, count: int | None = None) -> Iterator[T]:
    """Each of `steps`, with a bar called `what` while they last; `count` of them, where they do not tell it."""
    with _bar(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as bar:
        yield from bar.track(steps, total=count, description=what)


def _bar(*columns: ProgressColumn) -> Progress:
    """A bar on the console, gone when it is done; none in a pipe or a file."""
    screen = console()
    shown = screen.is_terminal or screen.is_jupyter
    aside = not sys.stdout.isatty()  # results in a pipe stay there
    return Progress(*columns, console=screen, transient=True, redirect_stdout=not aside, disable=not shown)


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
        self._bar = _bar(
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
