"""Depth: the cost of moving activations through the units, linear and not quadratic in depth.

python -m benchmarks.depth --threads 1        # recorded
python -m benchmarks.depth --quick

Everything `reconstruct` does but the iterations themselves: each unit's full-precision output, its loss before,
and its quantized output, from values that the units before left in the cache. The quadratic alternative brings
each unit its input and target from the image, through the units before it in both networks, and computes no
losses. Work is counted by torch's FLOP counter, in passes of all calibration images through the network.
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from matplotlib.figure import Figure
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import main
from benchmarks.plots import COLORS, axes
from benchmarks.records import Outcome, Table
from benchmarks.timing import interleaved
from qdrop.config import ActivationQConfig, QuantConfig, ReconConfig, WeightQConfig
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph
from qdrop.graph.plan import Plan, make_plan
from qdrop.graph.split import Segment, segments
from qdrop.models.cifar_resnet import cifar_resnet
from qdrop.quantization.state import quantizing
from qdrop.solver import recon
from qdrop.solver.calibrate import calibrate

DEPTHS = (20, 32, 44, 56, 110)
BATCH = 32
TARGET = 3
"""Passes through the network, whatever the depth: full precision, quantized, and one for the loss before."""


@dataclass(frozen=True)
class Network:
    """A calibrated network and its units."""

    model: fx.GraphModule
    plan: Plan
    parts: list[Segment]


def network(depth: int, images: Tensor, device: torch.device) -> Network:
    """A CIFAR ResNet with random weights; ranges from minimum and maximum, which is quick."""
    torch.manual_seed(0)
    config = QuantConfig(
        a_qconfig=ActivationQConfig(observer="MinMaxObserver"), w_qconfig=WeightQConfig(observer="MinMaxObserver")
    )
    graph = capture(cifar_resnet(depth).eval(), images[:2])
    plan = make_plan(graph, config, "block")
    model = quantize_graph(graph, plan).to(device)
    calibrate(model, {"x": images[:BATCH]}, BATCH, device)
    return Network(model, plan, segments(model, plan))


@contextmanager
def without_iterations() -> Iterator[None]:
    """Inside: `reconstruct` brings each unit its data and learns nothing from it."""
    with patch.object(recon, "reconstruct_unit", lambda *args, **kwargs: 0.0):
        yield


def linear(network: Network, images: Tensor, device: torch.device) -> None:
    """Every value flows through the units once."""
    with without_iterations():
        list(recon.reconstruct(network.model, network.plan, {"x": images}, ReconConfig(batch_size=BATCH), 0, device))


@torch.no_grad()
def quadratic(network: Network, images: Tensor, device: torch.device) -> None:
    """Every unit's input and target come from the image."""
    for index, part in enumerate(network.parts):
        if part.unit is not None:
            for batch in images.split(BATCH):
                run(network.parts[: index + 1], batch.to(device), quantized=False)
                run(network.parts[:index], batch.to(device), quantized=True)


def run(parts: list[Segment], batch: Tensor, quantized: bool) -> dict[str, Tensor]:
    """What the first parts of a network write."""
    values = {parts[0].inputs[0]: batch} if parts else {}
    for part in parts:
        with quantizing(part.module, weights=quantized, activations=quantized):
            out = part.module(*(values[name] for name in part.inputs))
        values |= zip(part.outputs, out, strict=True)
    return values


@torch.no_grad()
def forward(network: Network, images: Tensor, device: torch.device) -> None:
    """One full-precision pass."""
    for batch in images.split(BATCH):
        network.model(batch.to(device))


@dataclass(frozen=True)
class Finding:
    """What was measured at one depth."""

    depth: int
    units: int
    passes: float
    """Forward work of ours, in passes."""
    quadratic_passes: float
    seconds: float
    quadratic_seconds: float
    pass_seconds: float
    """One full-precision pass."""

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        counted = (f"{self.passes:.2f}", f"{self.quadratic_passes:.1f}")
        timed = (f"{self.pass_seconds:.1f}", f"{self.seconds:.1f}", f"{self.quadratic_seconds:.1f}")
        return (
            f"ResNet-{self.depth}",
            str(self.units),
            *counted,
            *timed,
            f"{self.quadratic_seconds / self.seconds:.1f}",
        )

    @property
    def figures(self) -> dict[str, float]:
        """Under plain names."""
        values = {
            "passes": self.passes,
            "quadratic_passes": self.quadratic_passes,
            "seconds": self.seconds,
            "quadratic_seconds": self.quadratic_seconds,
            "pass_seconds": self.pass_seconds,
        }
        return {f"resnet{self.depth}.{name}": value for name, value in values.items()}


def flops(work: object, *args: object) -> int:
    """Floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        work(*args)  # type: ignore[operator]
    return counter.get_total_flops()


def find(depth: int, images: Tensor, rounds: int, device: torch.device) -> Finding:
    """Count and time one depth."""
    net = network(depth, images, device)
    few = images[:2]
    one, ours, theirs = (flops(work, net, few, device) for work in (forward, linear, quadratic))
    candidates = {work.__name__: (lambda work=work: work(net, images, device)) for work in (linear, forward, quadratic)}
    timings = interleaved(candidates, rounds, device, warm_up=0)
    return Finding(
        depth,
        len(net.plan.units),
        passes=ours / one,
        quadratic_passes=theirs / one,
        seconds=timings.median("linear"),
        quadratic_seconds=timings.median("quadratic"),
        pass_seconds=timings.median("forward"),
    )


def measure(args: Namespace) -> Outcome:
    """Work and seconds at every depth."""
    logging.getLogger("qdrop").setLevel(logging.ERROR)
    depths, count, rounds = (DEPTHS[:3], 32, 1) if args.quick else (DEPTHS, 64, 2)
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    findings = [find(depth, images, rounds, args.device) for depth in depths]
    table = Table(
        f"Bringing every unit its data, {count} images of 32x32. Target: at most {TARGET} passes of work at any depth.",
        (
            "network",
            "units",
            "work, passes",
            "quadratic, passes",
            "one pass, s",
            "ours, s",
            "quadratic, s",
            "times faster",
        ),
        tuple(finding.cells for finding in findings),
    )
    figures = {name: value for finding in findings for name, value in finding.figures.items()}
    note = (
        "A pass of work is one full-precision pass of all images. Seconds of ours are more than three times those of"
        " such a pass, because two of the three passes quantize."
    )
    return Outcome(figures, (table,), draw(findings, count), (note,))


def draw(findings: list[Finding], count: int) -> Figure:
    """Seconds against depth."""
    plot, ax = axes(f"Bringing every unit its data, {count} images of 32x32", "layers of the CIFAR ResNet", "seconds")
    depths = [finding.depth for finding in findings]
    for name, seconds, color in (
        ("each unit from the image: quadratic", [f.quadratic_seconds for f in findings], COLORS[1]),
        ("values flow through the units once", [f.seconds for f in findings], COLORS[0]),
    ):
        ax.plot(depths, seconds, marker="o", color=color, label=name)
        ax.annotate(f"{seconds[-1]:.0f} s", (depths[-1], seconds[-1]), (6, 4), textcoords="offset points", fontsize=9)
    ax.set_xticks(depths)
    ax.set_ylim(bottom=0)
    ax.margins(x=0.08)
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    return plot


if __name__ == "__main__":
    sys.exit(main(__doc__, "depth", measure))
