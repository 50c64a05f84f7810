"""The command `qdrop`, also `python -m qdrop`: each of its commands is also a module of its own."""

import argparse
import difflib
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import qdrop
from qdrop.runtime.openmp import wait_asleep

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
COMMANDS = {
    "quantize": ("qdrop.solver.main_imagenet", "quantize a trained network: config file in, run folder out"),
    "compare": (
        "qdrop.commands.compare",
        "quantize at several bit widths, with the drop and without: a table, a picture",
    ),
    "evaluate": ("qdrop.commands.evaluate", "measure how good a packed checkpoint or an ONNX file is"),
    "export": ("qdrop.export.__main__", "write a run's network as ONNX or as a program of torch.export"),
    "inspect": ("qdrop.commands.inspect", "show layers, bits, shapes, sizes and figures of a file"),
    "report": ("qdrop.runs.report", "show what runs found out, as a table"),
    "record": ("qdrop.runs.experiments", "add finished runs to a table of experiments, and make its page anew"),
}
"""Module of each command, imported only when it is asked for, and what it does."""


class _Parser(argparse.ArgumentParser):
    """Its errors end with where the commands are listed."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` lists all commands\n")


def _unknown(name: str) -> str:
    """What to say of a command that there is not: the nearest, or all there are."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"{name}: no such command; " + (f"did you mean {near[0]}?" if near else f"expected {' | '.join(COMMANDS)}")


def parser() -> argparse.ArgumentParser:
    """The arguments before those of the command."""
    lines = [f"  {name:10}{what}" for name, (_, what) in COMMANDS.items()]
    made = _Parser(
        prog="qdrop",
        description="Post-training quantization of vision networks to 2 to 4 bits (QDrop, ICLR 2022).",
        epilog="commands; `qdrop COMMAND --help` tells more:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"qdrop {qdrop.__version__}")
    made.add_argument("command", metavar="COMMAND", help=" | ".join(COMMANDS))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status of the command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    made = parser()
    command = made.parse_args(argv[:1]).command
    if command not in COMMANDS:
        made.error(_unknown(command))
    wait_asleep()  # before torch comes with the command
    try:
        module = importlib.import_module(COMMANDS[command][0])
        status: int = module.main(argv[1:], prog=f"qdrop {command}")
    except KeyboardInterrupt:  # while torch was being imported
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    if status == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would interrupt the end of the interpreter
    return status


if __name__ == "__main__":
    sys.exit(main())
