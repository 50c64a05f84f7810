"""Reconstruction step against a bare training step of the same block.

One iteration of reconstruction (gather a batch, drop, quantizers, forward, both losses, backward, Adam), compiled
and not, over one of a bare float training step (gather, forward, squared error, backward, Adam). Beside it the step
written the plain way, from the formulas, as the published code does: benchmarks/plain_step.py. And how long compiling
takes where PyTorch has nothing from an earlier run, and after how many iterations that is made up for.
"""

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor, fx

from benchmarks.common import main
from benchmarks.plain_step import plain, plain_step
from benchmarks.plots import axes, bars
from benchmarks.records import Outcome, Table
from benchmarks.timing import interleaved, seconds_of
from qdrop.config import QuantConfig, ReconConfig
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph
from qdrop.graph.plan import make_plan
from qdrop.graph.scopes import learning_rounding
from qdrop.graph.split import segments
from qdrop.models import build_model
from qdrop.quantization.state import quantizers
from qdrop.solver.activations.cache import Pair, run_all
from qdrop.solver.calibrate import calibrate
from qdrop.solver.unit import Step, iterations

BATCH = 32
IMAGES = 64
TARGETS = {"compiled": 1.15, "eager": 1.6}


@dataclass(frozen=True)
class Case:
    """A block of a network."""

    label: str
    network: str
    unit: str
    size: int
    """Height and width of the network's input."""
    shape: tuple[int, int, int]
    """The block's input, `[C, H, W]`."""
    rounds: int = 21
    """How often each candidate is timed: more where a step is short."""


CASES = (
    Case("CIFAR block\n16x32x32", "resnet20", "layer1.0", 32, (16, 32, 32), rounds=61),
    Case("ResNet-18 layer1\n64x56x56", "resnet18", "layer1.0", 224, (64, 56, 56)),
    Case("ResNet-18 layer4\n512x7x7", "resnet18", "layer4.1", 224, (512, 7, 7)),
    Case("MobileNetV2\n32x28x28", "mobilenetv2", "features.5", 224, (32, 28, 28)),
    Case("ResNet-50\n512x28x28", "resnet50", "layer2.1", 224, (512, 28, 28)),
)
SMALL = {"resnet20", "mobilenetv2"}
"""Networks whose blocks are quick to time, for a quick run."""


def block(case: Case, device: torch.device) -> tuple[fx.GraphModule, Pair, Tensor]:
    """The calibrated block with random weights, its inputs in both networks and its output, for `IMAGES` images."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, case.size, case.size)
    graph = capture(build_model(case.network, {}, None).eval(), images)
    plan = make_plan(graph, QuantConfig())
    model = quantize_graph(graph, plan).to(device)
    calibrate(model, {"x": images}, 2, device)
    part = next(part for part in segments(model, plan) if part.name == case.unit)
    full = torch.randn(IMAGES, *case.shape, device=device).relu().to(memory_format=torch.channels_last)
    inputs = Pair(full, full + 0.01 * torch.randn_like(full))
    return part.module, inputs, run_all(part.module, (full,), 8, device)[0][:]


def bare_step(unit: fx.GraphModule, full: Tensor, target: Tensor, layout: torch.memory_format) -> Callable[[], None]:
    """One iteration of training the float block each time it is called, weights and activations in a layout."""
    unit = copy.deepcopy(unit)
    for parameter in unit.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    full, target = full.contiguous(memory_format=layout), target.contiguous(memory_format=layout)
    of_quantizers = {id(p) for quantizer in quantizers(unit) for p in quantizer.parameters()}
    learned = [p.requires_grad_() for p in unit.parameters() if id(p) not in of_quantizers]
    optimizer = torch.optim.Adam(learned, lr=1e-6)

    def step() -> None:
        rows = torch.randint(len(target), (BATCH,), device=target.device)
        optimizer.zero_grad()
        (unit(full[rows])[0] - target[rows]).pow(2).sum(1).mean().backward()
        optimizer.step()

    return step


def learning(unit: fx.GraphModule, inputs: Pair, target: Tensor, config: ReconConfig) -> Iterator[Step]:
    """The iterations of the block, one each time the next is asked for."""
    with learning_rounding(unit):
        yield from iterations(unit, [inputs], [target], config, torch.Generator().manual_seed(0))


def candidates(case: Case, device: torch.device, rounds: int) -> dict[str, Callable[[], object]]:
    """What is timed, each a call for one iteration."""
    unit, inputs, target = block(case, device)
    full = inputs.full[:]
    made: dict[str, Callable[[], object]] = {
        "bare": bare_step(unit, full, target, torch.contiguous_format),
        "bare channels-last": bare_step(unit, full, target, torch.channels_last),
    }
    base = ReconConfig(iters=rounds + 100, warm_up=0.0)
    for name, config in (("compiled", replace(base, compile="on")), ("eager", replace(base, compile="off"))):
        steps = learning(copy.deepcopy(unit), inputs, target, config)
        made[name] = steps.__next__
    step = plain_step(plain(unit, 0.5), [inputs], [target], base)
    made["plain"] = lambda: step(base.weight, base.b_range[0])
    return made


@contextmanager
def cold_compiler() -> Iterator[None]:
    """Inside: a compiler that has started, and finds nothing of what was compiled before."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        torch.compile(torch.sin)(torch.ones(2))
        yield


@cold_compiler()
def measure(args: argparse.Namespace) -> Outcome:
    """All cases, or the small ones if `args.quick`."""
    cases = [case for case in CASES if case.network in SMALL] if args.quick else CASES
    figures: dict[str, float] = {}
    rows: list[tuple[str, ...]] = []
    ratios: dict[str, list[float]] = {"bare channels-last": [], "compiled": [], "eager": [], "plain": []}
    for case in cases:
        rounds = 15 if args.quick else case.rounds
        made = candidates(case, args.device, rounds)
        compiling = seconds_of(made["compiled"], args.device)  # the first iteration compiles
        timed = interleaved(made, rounds, args.device, warm_up=3)
        key = f"{case.network}.{case.unit}"
        figures[f"{key}.bare.ms"] = 1e3 * timed.median("bare")
        for name, found in ratios.items():
            found.append(timed.ratio(name, "bare"))
            figures[f"{key}.{name.replace(' ', '_')}.ratio"] = found[-1]
        figures[f"{key}.speedup_over_plain"] = timed.ratio("plain", "compiled")
        saved = timed.median("eager") - timed.median("compiled")
        figures |= {f"{key}.compiling.seconds": compiling, f"{key}.saved_by_compiling.ms": 1e3 * saved}
        cells = [f"{found[-1]:.2f}" for found in ratios.values()]
        cells += [f"{compiling:.0f} s", f"{compiling / saved:,.0f}" if saved > 0 else "-"]
        rows.append((case.label.replace("\n", " "), f"{figures[f'{key}.bare.ms']:.1f} ms", *cells))
    figure, ax = axes("Reconstruction step / bare training step", "", "ratio, lower is better", (9.0, 4.2))
    bars(ax, [case.label for case in cases], ratios)
    ax.axhline(1.0, color="#444444", linewidth=0.8)
    columns = ("block, batch 32", "bare step", *ratios, "compiling", "pays after")
    table = Table("Time of an iteration over that of a bare float training step.", columns, tuple(rows))
    wanted = ", ".join(f"{name} at most {most}" for name, most in TARGETS.items())
    return Outcome(
        figures,
        (table,),
        figure,
        (
            f"Targets: {wanted}. Medians of interleaved rounds, 'plain' is the step as the published code writes it.",
            "The bare step has PyTorch's default layout of memory, ours is channels-last; what that alone gains is"
            " in the column of the bare step in that layout.",
            "Compiling: the first time on a machine, on one core; PyTorch keeps what it compiled. It pays after that"
            " many iterations, of one unit or of several of equal shape.",
        ),
    )


if __name__ == "__main__":
    sys.exit(main(__doc__, "step", measure))
