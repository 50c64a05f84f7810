"""How good a quantized network is that lies in a file: a packed checkpoint, or ONNX.

qdrop evaluate RUN                                             # on the data that the run itself used
qdrop evaluate quantized.safetensors --data /data/imagenet
qdrop evaluate quantized-int8.onnx --data /data/cifar10 data.type=cifar10
"""

import argparse
import json
import logging
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qdrop import checkpoint
from qdrop.checkpoint.network_file import FileKind, NetworkFile, find_network
from qdrop.commands.command import exit_status
from qdrop.config import Config, ConfigError, config_from_dict
from qdrop.errors import first_line
from qdrop.export.onnx_file import settings
from qdrop.export.onnx_network import OnnxNetwork
from qdrop.registry import TASKS
from qdrop.runs.run_folder import data_of_run
from qdrop.runtime.memory import keeping_freed_memory
from qdrop.runtime.openmp import run_program
from qdrop.runtime.precision import layer_arithmetic
from qdrop.solver.main_imagenet import prepare_device
from qdrop.tasks.task import Figures, in_words, make_task

ALWAYS = (
    "data.type",
    "data.name",
    "data.batch_size",
    "data.num_workers",
    "data.pin_memory",
    "data.val_limit",
    "process.threads",
)
"""Settings that have an effect on every evaluation."""
TORCH = ("process.device",)
"""Those of a network that PyTorch runs."""
log = logging.getLogger(__name__)


def evaluate(path: Path, overrides: Sequence[str] = ()) -> tuple[Figures, int, Config]:
    """What is measured of the network in a file, on how many images, and the settings it was measured with.

    Args:
        path: A run folder, a packed checkpoint, or ONNX.
        overrides: Settings that replace those recorded in the file, and in its run folder: `data.path=...`.

    Raises:
        QdropError: Names what to change.
        OSError: If a file cannot be read.
    """
    file = find_network(path, FileKind.CHECKPOINT, FileKind.ONNX)
    if file.kind is FileKind.ONNX:
        config = _config(file, settings(file.path), overrides)
        device = torch.device("cpu")
        model: nn.Module = OnnxNetwork(file.path, config.process.threads)
    else:
        network = checkpoint.load(file.path)
        config = _config(file, network.meta["config"], overrides)
        device = prepare_device(config.process)
        model = network
    task = make_task(config)
    task.check(model)
    with layer_arithmetic(), keeping_freed_memory():  # as the run that measured the recorded figures
        return task.evaluate(model.to(device), device), task.size, config


def _config(file: NetworkFile, recorded: dict[str, Any], overrides: Sequence[str]) -> Config:
    """The settings recorded in a file, with those of the command line, each of which must have an effect."""
    try:
        config_from_dict(recorded)
    except ConfigError as error:  # `qdrop.save` records whatever it is given
        log.warning("%s: what it records are not the settings of a run: %s", file.path, first_line(error))
        recorded = {}
    data = recorded.get("data") or {}
    config = config_from_dict({**recorded, "data": {**data, **data_of_run(file.path, data)}}, overrides)
    of_task = TASKS[config.data.type].settings(config.data.type)
    used = [*ALWAYS, *of_task, *(TORCH if file.kind is FileKind.CHECKPOINT else ())]
    idle = [key for key in (override.partition("=")[0] for override in overrides) if key not in used]
    if idle:
        raise ConfigError(
            f"command line: {', '.join(idle)}: without effect where {file.kind} is evaluated on"
            f" data.type={config.data.type}; what has one: {', '.join(sorted(used))}"
        )
    if not recorded:
        values = [f"{name}={attrgetter(name)(config)}" for name in ("data.type", *of_task)]
        log.info("%s records no settings; used are %s", file.path, " ".join(values))
    return config


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "file", type=Path, metavar="FILE", help="a run folder, its quantized.safetensors, or an ONNX file"
    )
    made.add_argument(
        "--data",
        metavar="PATH",
        help="folder of the data set, short for data.path=PATH (default: that of the run, where FILE is in its folder)",
    )
    made.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that replace those recorded in the file: data.batch_size=256 data.val_limit=1000;"
        " `qdrop quantize --help` lists them",
    )
    return made


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.commands.evaluate") -> int:
    """Entry point of the command line; returns the exit status."""
    args = parser(prog).parse_intermixed_args(argv)
    place = [] if args.data is None else [f"data.path={json.dumps(args.data, ensure_ascii=False)}"]  # as it is
    overrides = [*place, *args.overrides]

    def work() -> None:
        figures, images, config = evaluate(args.file, overrides)
        print(f"{args.file}: {in_words(figures)} on {images:,} images of {config.data.name or config.data.type}")

    return exit_status(work)


if __name__ == "__main__":
    run_program(main)
