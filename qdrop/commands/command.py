"""What the commands share: their arguments, the run folder, and users' mistakes in one line instead of a traceback."""

import argparse
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from qdrop.cli import INTERRUPTED
from qdrop.config import Config, load_config, what_counts
from qdrop.config.help import presets_help, settings_help
from qdrop.errors import QdropError, first_line
from qdrop.files import expanded
from qdrop.runtime.console import ConsoleHandler
from qdrop.runtime.memory import is_out_of_memory

log = logging.getLogger("qdrop")


def exit_status(work: Callable[[], None]) -> int:
    """Do the work of a command: 0, or, after a message, 1 where it fails through settings, files, data or memory."""
    logging.basicConfig(format="%(message)s", handlers=[ConsoleHandler()])
    log.setLevel(logging.INFO)
    try:
        work()
    except KeyboardInterrupt:
        log.error("interrupted")
        return INTERRUPTED
    except (QdropError, OSError) as error:
        log.error("error: %s", error)
        return 1
    except (RuntimeError, MemoryError) as error:  # torch has a type of its own for a GPU's memory only
        if not is_out_of_memory(error):
            raise
        told = "lower data.batch_size, quant.calibrate_batch or quant.recon.batch_size"
        log.error("error: memory ran out; %s: %s", told, first_line(error))
        return 1
    return 0


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The argument of whatever takes settings beside names of its own, which become `overrides`."""
    parser.add_argument(
        "--set", dest="overrides", nargs="+", action="extend", default=[], metavar="key=value", help="data.path=..."
    )


class _Parser(argparse.ArgumentParser):
    """Its help ends with every setting."""

    def format_help(self) -> str:
        width = min(shutil.get_terminal_size().columns, 110)
        title = "settings, with default, type and meaning:"
        return f"{super().format_help()}\n{title}\n\n{settings_help(width)}\n{presets_help()}\n"


def run_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The arguments of whatever starts runs: a config file, and settings in the place of the file's."""
    parser = _Parser(prog=prog, description=description)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file with settings")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that replace the file's: quant.recon.iters=100",
    )
    return parser


def parse_args(
    argv: Sequence[str] | None = None, prog: str = "python -m qdrop.solver.main_imagenet"
) -> tuple[Config, Path]:
    """The settings of a run that a command line asks for, and the file it names; `argv` None: that of this process."""
    args = run_parser(prog, "Quantize a trained network.").parse_intermixed_args(argv)
    return load_config(args.config, args.overrides), args.config


def run_folder(config: Config, file: str | Path) -> Path:
    """Where results go: process.out, or runs/<name>-<hash> beside the config file.

    The hash is that of :func:`what_counts`: the same settings find the same folder again.
    """
    if config.process.out is not None:
        return expanded(config.process.out)
    digest = hashlib.sha256(json.dumps(what_counts(config), sort_keys=True).encode()).hexdigest()[:8]
    a_bit = config.quant.a_qconfig.bit if config.quant.a_qconfig else 32
    name = re.sub(r"[^\w.-]+", "_", config.model.type)
    return Path(file).parent / "runs" / f"{name}-w{config.quant.w_qconfig.bit}a{a_bit}-{digest}"
