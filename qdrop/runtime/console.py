"""What a user sees while it works: one console for log and bars, on standard error; in a pipe lines and no bar.

for batch in track(loader, "evaluating"):
...
"""

import functools
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

log = logging.getLogger("qdrop")
T = TypeVar("T")


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
    with bar(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as shown:
        yield from shown.track(steps, total=count, description=what)


def bar(*columns: ProgressColumn) -> Progress:
    """A bar on the console, gone when it is done; none in a pipe or a file."""
    screen = console()
    shown = screen.is_terminal or screen.is_jupyter
    aside = not sys.stdout.isatty()  # results in a pipe stay there
    return Progress(*columns, console=screen, transient=True, redirect_stdout=not aside, disable=not shown)
