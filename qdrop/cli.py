"""The command `qdrop`: quantize | evaluate | export | inspect | report, each also a module of its own."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "quantize": ("qdrop.solver.main_imagenet", "quantize a trained network: config file in, run folder out"),
    "evaluate": ("qdrop.solver.evaluate", "measure top-1 of a packed checkpoint or an ONNX file"),
    "export": ("qdrop.export.__main__", "write a run's network as ONNX or as a program of torch.export"),
    "inspect": ("qdrop.inspection", "show layers, bits, shapes, sizes and figures of a file"),
    "report": ("qdrop.solver.report", "make the table of experiments from their results"),
}
"""Module of each command, imported only when it is asked for, and what it does."""


def parser() -> argparse.ArgumentParser:
    """The arguments before those of the command."""
    lines = [f"  {name:10}{what}" for name, (_, what) in COMMANDS.items()]
    made = argparse.ArgumentParser(
        prog="qdrop",
        description="Post-training quantization of vision networks to 2 to 4 bits (QDrop, ICLR 2022).",
        epilog="commands; `qdrop COMMAND --help` tells more:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=" | ".join(COMMANDS))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status of the command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = parser().parse_args(argv[:1]).command
    module = importlib.import_module(COMMANDS[command][0])
    status: int = module.main(argv[1:], prog=f"qdrop {command}")
    return status


if __name__ == "__main__":
    sys.exit(main())
