"""Accuracy against the plain way: the same run with every step written straight from the formulas.

ResNet-20 on CIFAR-10 at W2A4: same calibration images, ranges, schedule and cached values; once with qdrop's step and
once with that of benchmarks/plain_step.py, which autograd differentiates and which draws its own random numbers. What
is left between the two is what one seed differs from another. Needs real data:

    python -m benchmarks.fidelity --data DATA/cifar10 --weights DATA/cifar10/weights/resnet20.safetensors
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import fx

import qdrop
from benchmarks.common import arguments, main
from benchmarks.plain_step import PlainActivation, PlainWeight, plain, plain_step
from benchmarks.records import Outcome, Table
from qdrop.config import ActivationQConfig, DataConfig, QuantConfig, ReconConfig, WeightQConfig
from qdrop.graph.scopes import harden
from qdrop.models import build_model
from qdrop.runs.page import mean_and_spread
from qdrop.solver import recon
from qdrop.solver.activations.cache import Pair, Value
from qdrop.solver.imagenet_util import calibration_images, validation_loader
from qdrop.solver.objectives.regularizer import RoundingSchedule
from qdrop.tasks.classification.accuracy import accuracy


def reconstruct_plainly(
    unit: fx.GraphModule,
    inputs: Sequence[Pair],
    targets: Sequence[Value],
    config: ReconConfig,
    generator: torch.Generator,
    **others: Any,
) -> float:
    """In the place of :func:`qdrop.solver.unit.reconstruct_unit`; `others` (watch, compiler) are left alone."""
    twin = plain(unit, config.drop_prob)
    schedule = RoundingSchedule(config.weight, config.warm_up, config.b_range, config.iters)
    torch.manual_seed(generator.initial_seed() % 2**31)
    step = plain_step(twin, inputs, targets, config)
    for iteration in range(1, config.iters + 1):
        step(*schedule(iteration))
    return _take_over(unit, twin)


@torch.no_grad()
def _take_over(unit: fx.GraphModule, twin: fx.GraphModule) -> float:
    """Give the unit what its twin learned, and harden it; the share of weights not rounded to the nearest."""
    for name, module in twin.named_modules():
        learned = unit.get_submodule(name).state_dict()
        if isinstance(module, PlainWeight):
            learned["rounding.alpha"].copy_(module.alpha)
        elif isinstance(module, PlainActivation):
            learned["scale"].copy_(module.scale.abs())
    return harden(unit)


def measure(args: argparse.Namespace) -> Outcome:
    """Top-1 of both ways for every seed; 20 iterations of one seed if `args.quick`."""
    iters, seeds = (20, [1]) if args.quick else (args.iters, args.seeds)
    data = DataConfig("cifar10", path=args.data, augment=False, num_workers=0, input_size=32, test_resize=32)
    network, loader = build_model("resnet20", {}, args.weights).eval().to(args.device), validation_loader(data)
    settings = QuantConfig(ActivationQConfig(bit=4), WeightQConfig(bit=2), recon=ReconConfig(iters=iters))
    figures: dict[str, float] = {}
    for seed in seeds:
        images = calibration_images(data, settings.calibrate, seed)
        for name, step in (("qdrop", recon.reconstruct_unit), ("plain", reconstruct_plainly)):
            with patch.object(recon, "reconstruct_unit", step):
                quantized, _ = qdrop.quantize(network, images, settings, seed=seed)
            figures[f"seed{seed}.{name}.top1"] = accuracy(quantized, loader, args.device)
            print(seed, name, f"{figures[f'seed{seed}.{name}.top1']:.2f}", flush=True)
    caption = f"ResNet-20 at W2A4, {iters:,} iterations of the published schedule, top-1 in percent."
    return Outcome(figures, (Table(caption, ("seed", "qdrop", "plain", "difference"), rows(figures, seeds)),))


def rows(figures: Mapping[str, float], seeds: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """A row for each seed, and their mean and spread: a seed draws the images, so only differences within it count."""
    ours, plainly = ([figures[f"seed{seed}.{name}.top1"] for seed in seeds] for name in ("qdrop", "plain"))
    columns = (ours, plainly, [a - b for a, b in zip(ours, plainly, strict=True)])
    each = [(str(seed), *(f"{column[i]:.2f}" for column in columns)) for i, seed in enumerate(seeds)]
    return (*each, ("all", *(mean_and_spread(column) for column in columns)))


def parser() -> argparse.ArgumentParser:
    """The common arguments, and where the data is."""
    made = arguments(str(__doc__), "fidelity")
    made.add_argument("--data", required=True, metavar="PATH", help="CIFAR-10, as the config's data.path")
    made.add_argument("--weights", required=True, metavar="FILE", help="ResNet-20 trained on it")
    made.add_argument("--iters", type=int, default=2000, metavar="N", help="default: %(default)s")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    return made


if __name__ == "__main__":
    sys.exit(main(__doc__, "fidelity", measure, parser()))
