"""A whole run in a process of its own, which imports nothing that measures or draws: for benchmarks/end_to_end.py.

python -m benchmarks.whole_run --images 1024 --iters 2000 --compile off --cache disk

ResNet-20 at W2A4 with random weights, on random images of 32x32. Prints seconds and peak memory as JSON.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, fx

from qdrop.config import PRESETS, CacheConfig, QuantConfig, ReconConfig
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph
from qdrop.graph.plan import Plan, make_plan
from qdrop.models import build_model
from qdrop.runtime.memory import keeping_freed_memory, peak_memory_mb
from qdrop.runtime.precision import layer_arithmetic
from qdrop.solver.calibrate import calibrate
from qdrop.solver.recon import reconstruct

CALIBRATE_RANGE, BATCH = 256, 64
"""Images that set the ranges, and how many of them at a time."""


def published(iters: int) -> ReconConfig:
    """The published schedule with `iters` iterations."""
    return replace(ReconConfig(**PRESETS["published"]), iters=iters)


def prepared(images: int, config: ReconConfig, device: torch.device) -> tuple[fx.GraphModule, Plan, Tensor]:
    """The network with quantizers that are not calibrated, its plan, and the images `[N, 3, 32, 32]`."""
    torch.manual_seed(0)
    data = torch.randn(images, 3, 32, 32)
    graph = capture(build_model("resnet20", {}, None).eval(), data[:2])
    plan = make_plan(graph, QuantConfig(recon=config))
    return quantize_graph(graph, plan).to(device), plan, data


def whole_run(images: int, config: ReconConfig, device: torch.device) -> dict[str, float]:
    """Calibrate, and reconstruct every unit: seconds of both, and the peak of memory in MB."""
    model, plan, data = prepared(images, config, device)
    return {
        "calibration.seconds": _seconds(lambda: calibrate(model, {"x": data[:CALIBRATE_RANGE]}, BATCH, device)),
        "reconstruction.seconds": _seconds(lambda: list(reconstruct(model, plan, {"x": data}, config, 0, device))),
        "peak_memory.mb": peak_memory_mb(device),
    }


def _seconds(work: Callable[[], object]) -> float:
    """Wall time of what ends by reading a value, so that a GPU has finished too."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """The run that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--iters", type=int, default=2000)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--cache", choices=("auto", "gpu", "cpu", "disk"), default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("qdrop").setLevel(logging.ERROR)  # random weights are meant
    config = replace(published(args.iters), compile=args.compile, cache=CacheConfig(device=args.cache))
    with layer_arithmetic(), keeping_freed_memory():
        print(json.dumps(whole_run(args.images, config, torch.device(args.device))))


if __name__ == "__main__":
    main()
