"""One console for log and bars: on a terminal they do not write into each other, in a pipe there are lines only."""

import io
import logging
import re
import sys

import pytest
import torch
from rich.console import Console

import qdrop
from qdrop.commands.command import exit_status
from qdrop.config import DataConfig
from qdrop.runtime import console
from qdrop.runtime.console import ConsoleHandler, track
from qdrop.runtime.openmp import available_cores
from qdrop.solver.imagenet_util import validation_loader

log = logging.getLogger("qdrop")


def screen(monkeypatch, terminal: bool) -> io.StringIO:
    """The console's output; `terminal`: whether it takes itself for one."""
    out = io.StringIO()
    made = Console(file=out, force_terminal=terminal, width=60)
    monkeypatch.setattr(console, "console", lambda: made)
    return out


def lines(shown: str) -> list[str]:
    """What was written, a line each, without what only moves the cursor or colours."""
    return [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]+", shown)]


def without_logging(monkeypatch):
    """From here on logging is as a notebook finds it: pytest's own handlers are out of the way."""
    monkeypatch.setattr(log, "propagate", False)
    log.setLevel(logging.NOTSET)  # as other tests may not have left it
    assert not log.hasHandlers() and log.level == logging.NOTSET


@pytest.mark.parametrize("terminal", [True, False])
def test_a_log_line_stays_whole_while_a_bar_is_drawn(terminal, monkeypatch):
    out = screen(monkeypatch, terminal)
    handler = ConsoleHandler()
    log.addHandler(handler)
    try:
        for step in track(range(3), "working"):
            log.warning("step %d [bold] :smile:", step)
            print("from elsewhere", file=sys.stderr)
    finally:
        log.removeHandler(handler)
    shown = lines(out.getvalue())
    for step in range(3):
        assert f"step {step} [bold] :smile:" in shown
    assert any("working" in line for line in shown) is terminal
    assert ("from elsewhere" in shown) is terminal  # else it goes where it went


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_line_is_broken_between_words_on_a_terminal_alone(terminal, monkeypatch):
    out = screen(monkeypatch, terminal)
    words = " ".join(f"word{number}" for number in range(30))
    ConsoleHandler().emit(logging.LogRecord("qdrop", logging.INFO, "", 0, words, (), None))
    shown = out.getvalue().splitlines()
    assert [word for line in shown for word in line.split()] == words.split()
    assert (len(shown) == 1) is not terminal


def test_in_a_pipe_nothing_but_the_lines(monkeypatch):
    out = screen(monkeypatch, terminal=False)
    assert list(track(range(3), "working")) == [0, 1, 2]
    assert out.getvalue() == ""


def test_a_bar_goes_away_with_an_exception(monkeypatch):
    screen(monkeypatch, terminal=True)
    before = sys.stderr
    with pytest.raises(ValueError, match="no"):
        for _ in track(range(3), "working"):
            raise ValueError("no")
    assert sys.stderr is before


def test_quantize_tells_the_method_where_logging_is_not_set_up(monkeypatch, capsys):
    without_logging(monkeypatch)
    model, images = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()), torch.randn(8, 3, 4, 4)
    qdrop.quantize(model, images, {"recon": None, "calibrate": 8})
    assert capsys.readouterr().err.startswith("W2A4 by rounding to the nearest")
    assert not log.hasHandlers() and log.level == logging.NOTSET


def test_quantize_leaves_logging_to_who_has_set_it_up(monkeypatch, capsys):
    without_logging(monkeypatch)
    model, images = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()), torch.randn(8, 3, 4, 4)
    log.setLevel(logging.WARNING)
    try:
        qdrop.quantize(model, images, {"recon": None, "calibrate": 8})
    finally:
        log.setLevel(logging.NOTSET)
    assert capsys.readouterr().err == ""


def test_a_command_logs_to_the_console(monkeypatch):
    out = screen(monkeypatch, terminal=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    try:
        assert exit_status(lambda: log.info("a line")) == 0
    finally:
        log.setLevel(logging.NOTSET)
    assert out.getvalue() == "a line\n"


def test_never_more_workers_than_cores(recwarn):
    loader = validation_loader(DataConfig(type="digits", num_workers=64))
    assert loader.num_workers == min(64, available_cores())
    assert not [warning for warning in recwarn if "worker" in str(warning.message)]
    assert validation_loader(DataConfig(type="digits", num_workers=0)).num_workers == 0
