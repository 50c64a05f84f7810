"""Accuracy against iterations: the published schedule and faster ones.

ResNet-20 on CIFAR-10 at W2A4 and W2A2, 1,024 calibration images. Schedules are compared, and one is chosen, on
training images that were not calibrated on; the test images are only reported. Needs real data:

    python -m benchmarks.iterations --data DATA/cifar10 --weights DATA/cifar10/weights/resnet20.safetensors
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import qdrop
from benchmarks.common import COLORS, Outcome, Table, arguments, axes, main
from qdrop.config import PRESETS, ActivationQConfig, DataConfig, QuantConfig, ReconConfig, WeightQConfig
from qdrop.models import build_model
from qdrop.solver.accuracy import accuracy
from qdrop.solver.imagenet_util import calibration_images, validation_loader

CALIBRATED, HELD_OUT = 1024, 3072
SCHEDULES: dict[str, dict[str, Any]] = {
    "published": {"round_lr": 1e-3, "scale_lr": 4e-5},
    "rounding 1e-2": {"round_lr": 1e-2, "scale_lr": 4e-5},
    "rounding 3e-2": {"round_lr": 3e-2, "scale_lr": 4e-5},
    "rounding 1e-2, scales 4e-4": {"round_lr": 1e-2, "scale_lr": 4e-4},
}
"""What is compared; the rates are those of Adam."""
BITS = {"W2A4": (2, 4), "W2A2": (2, 2)}
Key = tuple[str, str, int, int]
"""Bits, schedule, iterations, seed."""


def settings(bits: str, schedule: str, iters: int) -> QuantConfig:
    """What a run is quantized with."""
    w_bit, a_bit = BITS[bits]
    recon = replace(ReconConfig(**PRESETS["published"]), iters=iters, **SCHEDULES[schedule])
    return QuantConfig(ActivationQConfig(bit=a_bit), WeightQConfig(bit=w_bit), recon=recon)


def split(data: DataConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Images to calibrate on `[1024, 3, 32, 32]`, and others of the training set `[3072, 3, 32, 32]`."""
    images = calibration_images(data, CALIBRATED + HELD_OUT, seed)
    return images[:CALIBRATED], images[CALIBRATED:]


@torch.no_grad()
def agreement(model: nn.Module, reference: nn.Module, images: Tensor) -> float:
    """Percent of images for which two networks predict the same class: needs no labels."""
    same = sum(int((model(b).argmax(1) == reference(b).argmax(1)).sum()) for b in images.split(256))
    return 100 * same / len(images)


def runs(args: argparse.Namespace, planned: list[Key]) -> Iterator[tuple[Key, float, float]]:
    """Agreement with full precision on images held out, and top-1 on test images, of each run."""
    data = DataConfig("cifar10", path=args.data, augment=False, num_workers=0, input_size=32, test_resize=32)
    reference = build_model("resnet20", {}, args.weights).eval()
    loader = validation_loader(data)
    for bits, schedule, iters, seed in planned:
        calibration, held_out = split(data, seed)
        quantized, _ = qdrop.quantize(reference, calibration, settings(bits, schedule, iters), seed=seed)
        key = (bits, schedule, iters, seed)
        found = agreement(quantized, reference, held_out), accuracy(quantized, loader, torch.device("cpu"))
        print(*key, "held out: {:.2f}, test: {:.2f}".format(*found), flush=True)
        yield key, *found


def plot(tested: dict[Key, float], iters: list[int]) -> Figure:
    """Test top-1 against iterations, mean over seeds: a line for each schedule, solid at W2A4, dashed at W2A2."""
    figure, ax = axes("ResNet-20, CIFAR-10 (JPEG copies)", "iterations per unit", "top-1, percent")
    for bits, style in zip(BITS, ("-", "--"), strict=True):
        for color, schedule in zip(COLORS, SCHEDULES, strict=False):
            points = [(n, _mean(tested, bits, schedule, n)) for n in iters if _seeds(tested, bits, schedule, n)]
            if not points:
                continue
            ax.plot(*zip(*points, strict=True), style, marker="o", color=color, label=f"{bits}, {schedule}")
    ax.set_xscale("log")
    ax.set_xticks(iters, [str(n) for n in iters])
    ax.legend(frameon=False, fontsize=8)
    return figure


def _seeds(values: dict[Key, float], bits: str, schedule: str, iters: int) -> list[float]:
    return [value for key, value in values.items() if key[:3] == (bits, schedule, iters)]


def _mean(values: dict[Key, float], bits: str, schedule: str, iters: int) -> float:
    return statistics.mean(_seeds(values, bits, schedule, iters))


def measure(args: argparse.Namespace) -> Outcome:
    """Every schedule at every number of iterations, for every seed; 20 iterations of two runs if `args.quick`."""
    iters = [20] if args.quick else args.iters
    seeds = [1] if args.quick else args.seeds
    planned = [(b, s, n, seed) for n in iters for seed in seeds for b in BITS for s in args.schedules]
    held_out: dict[Key, float] = {}
    tested: dict[Key, float] = {}
    for key, agrees, top1 in runs(args, planned[:2] if args.quick else planned):
        held_out[key], tested[key] = agrees, top1
    groups = list(dict.fromkeys(key[:3] for key in tested))
    rows = tuple(
        (*map(str, group), f"{_mean(held_out, *group):.2f}", f"{_mean(tested, *group):.2f}") for group in groups
    )
    columns = ("bits", "schedule", "iterations", "agreement, held out", "top-1, test")
    figures = {f"{b}.{s}.{n}.top1": _mean(tested, b, s, n) for b, s, n in groups}
    figures |= {f"{b}.{s}.{n}.agreement": _mean(held_out, b, s, n) for b, s, n in groups}
    note = f"Mean over {len(seeds)} seeds. Agreement: share of {HELD_OUT} training images, not calibrated on, for which"
    return Outcome(
        figures,
        (Table("Accuracy against iterations, percent.", columns, rows),),
        None if args.quick else plot(tested, iters),
        (f"{note} the prediction is that of the full-precision network; schedules are chosen by it.",),
    )


def parser() -> argparse.ArgumentParser:
    """The common arguments, and where the data is."""
    made = arguments(str(__doc__), "iterations")
    made.add_argument("--data", required=True, metavar="PATH", help="CIFAR-10, as the config's data.path")
    made.add_argument("--weights", required=True, metavar="FILE", help="ResNet-20 trained on it")
    made.add_argument("--iters", type=int, nargs="+", default=[100, 250, 500, 1000, 2000], metavar="N")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    made.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), help="default: all")
    return made


if __name__ == "__main__":
    sys.exit(main(__doc__, "iterations", measure, parser()))
