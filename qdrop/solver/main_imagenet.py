"""Quantize a trained network: the whole method, top to bottom.

python -m qdrop.solver.main_imagenet --config exp/w2a4/res18/config.yaml data.path=/data/imagenet
python -m qdrop.solver.main_imagenet --help        # every setting, its default and its meaning
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from qdrop import checkpoint, pipeline
from qdrop.checks import check_sizes
from qdrop.commands.command import exit_status, parse_args, run_folder
from qdrop.config import Config, ConfigError, ProcessConfig
from qdrop.graph.inputs import all_arguments, count_rows
from qdrop.models import build_model_with_info
from qdrop.quantization.state import quantizing
from qdrop.runs.result import Result
from qdrop.runs.resume import FinishedUnits, identity
from qdrop.runs.run_folder import RESUME, RunFolder, complete, portable
from qdrop.runs.scopes import locked, logging_to
from qdrop.runtime.memory import peak_memory_mb
from qdrop.runtime.openmp import available_cores, run_program
from qdrop.tasks.task import in_words, make_task

log = logging.getLogger("qdrop")


def run(config: Config, out: Path) -> Result:
    """Quantize and measure one network; where that was done before, with the same settings, only tell the result.

    Args:
        config: All settings.
        out: The run folder, where everything found out is written.

    Returns:
        The result, as written to `result.json`.

    Raises:
        QdropError: Names what to change.
        OSError: If a file cannot be read or written.
    """
    with locked(out):
        if (found := complete(out, config)) is not None:
            log.info("%s is complete, %s; delete it, or set process.out, to run again", out, in_words(found.outcome))
            return found
        with logging_to(out), pipeline.arithmetic():
            return _quantize(config, out)


def _quantize(config: Config, out: Path) -> Result:
    """The work of :func:`run`, from the data to the figures."""
    quant, seed = config.quant, config.process.seed
    folder = RunFolder(out)
    device = prepare_device(config.process)

    # Data and the full-precision network.
    task = make_task(config)  # first: missing data is told before weights are downloaded
    model, weights = build_model_with_info(config.model.type, config.model.kwargs, config.model.path)
    network = task.network(model)  # the part of the model that is quantized
    images = task.calibration(quant.calibrate, seed)  # [N, C, H, W], or batches of several sizes
    task.check(network)

    # What is quantized where, and the units.
    inputs = all_arguments(network, images)
    graph = pipeline.capture(network, inputs)
    check_sizes(inputs, graph)
    plan = pipeline.make_plan(graph, quant)
    finished = FinishedUnits(out / RESUME, plan, identity(config, plan, graph, images))
    quantized = pipeline.insert(graph, plan, device)
    checkpoint.check_graph(quantized)
    folder.begin(config, plan, device, weights)  # last: up to here an earlier run's results stay as they are
    full = task.evaluate(quantized, device)
    log.info("%s, full precision: %s", config.model.type, in_words(full))

    # Ranges; round-to-nearest comes out of it for free.
    started = time.perf_counter()
    pipeline.calibrate(quantized, inputs, quant, device)
    seconds_calibrate = time.perf_counter() - started
    with quantizing(quantized):
        nearest = task.evaluate(quantized, device)
    log.info("calibrated in %.1f s; round-to-nearest: %s", seconds_calibrate, in_words(nearest))

    # Unit by unit: learn the rounding of the weights and the scales of the activations.
    started = time.perf_counter()
    for report in pipeline.reconstruct(quantized, plan, inputs, quant, seed, device, out, finished):
        folder.log(asdict(report))
    pipeline.learn_network(quantized, inputs, quant, seed, device)
    seconds_reconstruct = time.perf_counter() - started + finished.seconds

    # The outcome, measured on what the run leaves behind.
    packed = checkpoint.describe(pipeline.freeze(quantized), portable(config))
    rebuilt = packed.build().to(device)
    outcome = task.evaluate(rebuilt, device, out)
    with quantizing(quantized, weights=False, activations=False):
        task.illustrate(quantized, rebuilt, device, out)
    result = Result.of(
        config,
        full=full,
        nearest=nearest,
        outcome=outcome,
        calibration_images=count_rows(inputs),
        validation_images=task.size,
        seconds_calibrate=seconds_calibrate,
        seconds_reconstruct=seconds_reconstruct,
        peak_memory_mb=peak_memory_mb(device),
    )
    folder.model(packed.with_metrics(result.figures()))
    folder.result(result)
    finished.clear()
    told = in_words(outcome), in_words(full)
    log.info("%s: %s (full precision: %s); results in %s", config.model.type, *told, out)
    return result


def prepare_device(process: ProcessConfig) -> torch.device:
    """The device that `process.device` names; sets the number of CPU threads.

    Raises:
        ConfigError: If a GPU is asked for and there is none.
    """
    if process.threads is not None:
        torch.set_num_threads(min(process.threads, available_cores()))
    name = process.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"process.device = {name}: torch sees no GPU here; use process.device=cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"process.device = {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return device


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.solver.main_imagenet") -> int:
    """Entry point of the command line; returns the exit status."""

    def work() -> None:
        config, file = parse_args(argv, prog)
        run(config, run_folder(config, file))

    return exit_status(work)


if __name__ == "__main__":
    run_program(main)
