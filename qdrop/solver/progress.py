"""One bar over all units, with the iteration inside the unit, its loss and the time left."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qdrop.solver.unit import Step

REFRESH = 100
"""Iterations between two updates: each reads the loss, which waits for the device."""


class UnitProgress:
    """A progress bar for reconstruction; call it with each step.

    Args:
        units: Number of units.
        iters: Iterations for each.
    """

    def __init__(self, units: int, iters: int) -> None:
        self._iters = iters
        self._done = 0
        self._bar = Progress(
            TextColumn("reconstructing {task.fields[unit]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("units, iteration {task.fields[iteration]}, loss {task.fields[loss]}, left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("", total=units, unit="", iteration=0, loss="-")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, unit: str, step: Step) -> None:
        """Take note of one iteration of `unit`."""
        last = step.iteration == self._iters
        if step.iteration % REFRESH and not last:
            return
        loss = f"{float(step.reconstruction):.4g}"
        done = self._done + step.iteration / self._iters
        self._bar.update(self._task, completed=done, unit=unit, iteration=step.iteration, loss=loss)
        self._done += last
