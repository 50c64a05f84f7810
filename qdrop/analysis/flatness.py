"""How the loss changes around quantized weights: along random directions, and over a plane of two of them.

python -m qdrop.analysis.flatness RUN RUN... --out flatness
python -m qdrop.analysis.flatness RUN RUN... --out flatness --plane    # and the loss over two directions

The paper's argument (Wei et al., QDrop, ICLR 2022, section 3): dropping quantization while learning leaves a loss
that changes less, on calibration images and on test images. Directions are normalised filter by filter (Li et al.,
Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018, section 4): each filter of a direction has the norm of the
weight's filter, so that a size of 0.1 means the same for every network.
"""

import argparse
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qdrop import checkpoint
from qdrop.analysis.command import need_pictures, study_parser, write
from qdrop.commands.command import exit_status
from qdrop.config import load_config
from qdrop.graph.insert import quantized_weights
from qdrop.models import build_model
from qdrop.runs.run_folder import SETTINGS
from qdrop.runtime.console import track
from qdrop.runtime.openmp import run_program
from qdrop.solver.imagenet_util import calibration_images, validation_loader

SIZES = (0.02, 0.05, 0.1, 0.2)
"""Of perturbations, as shares of each filter's norm."""
EDGE = 0.2
"""How far the plane goes to either side."""
log = logging.getLogger("qdrop")

Direction = Mapping[str, Tensor]
"""A change of every quantized weight, in its shape, by the weight's path."""


@dataclass(frozen=True)
class Around:
    """The loss of one run at one place."""

    run: str
    """Name of its folder."""
    images: str
    """`calibration` or `test`."""
    size: float
    """Of the perturbation; on the plane the first coordinate."""
    other: float
    """The second coordinate; 0 elsewhere."""
    loss: float
    """Cross-entropy to full precision's probabilities, mean over images and, along random directions, over these."""
    change: float
    """Relative change: loss over that of the unperturbed network, less 1."""


@torch.no_grad()
def direction(network: fx.GraphModule, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction, normal and then of each weight filter's norm.

    Args:
        network: A quantized network on the CPU.
        generator: On the CPU.
    """
    found = {}
    for weight in quantized_weights(network):
        values = weight.quantizer(weight.weight)
        axes = tuple(range(1, values.ndim))
        drawn = torch.randn(values.shape, generator=generator)
        norm, own = (torch.linalg.vector_norm(tensor, dim=axes, keepdim=True) for tensor in (values, drawn))
        found[weight.name] = drawn * (norm / own)
    return found


@contextmanager
def moved(network: fx.GraphModule, steps: Iterable[tuple[float, Direction]]) -> Iterator[None]:
    """Inside: every quantized weight is moved, by the sum of so much of each direction."""
    total: dict[str, Tensor] = {}
    for size, along in steps:
        for name, change in along.items():
            total[name] = total.get(name, torch.zeros(())) + size * change
    with ExitStack() as hooks:
        for weight in quantized_weights(network):
            change = total[weight.name]
            handle = weight.quantizer.register_forward_hook(lambda module, args, out, change=change: out + change)
            hooks.callback(handle.remove)
        yield


@torch.no_grad()
def loss(network: nn.Module, images: Tensor, target: Tensor) -> float:
    """Cross-entropy to the probabilities of full precision, `-sum p log q`: no labels, so it is one for all images.

    Args:
        network: Images `[N, C, H, W]` to logits `[N, K]`.
        images: All of them.
        target: Full precision's logits for them `[N, K]`.
    """
    total = 0.0
    for batch, wanted in zip(images.split(256), target.split(256), strict=True):
        total += float(F.cross_entropy(network(batch), wanted.softmax(1), reduction="sum"))
    return total / len(images)


def around(run: str, network: fx.GraphModule, data: Mapping[str, tuple[Tensor, Tensor]], count: int) -> list[Around]:
    """The loss along random directions of growing size.

    Args:
        run: What to call it.
        network: Its quantized network.
        data: Images and full precision's logits, by what they are.
        count: Directions, the same for all sizes and images.
    """
    generator = torch.Generator().manual_seed(0)
    directions = [direction(network, generator) for _ in range(count)]
    found = []
    for kind, (images, target) in data.items():
        start = loss(network, images, target)
        for size in track(SIZES, f"{run}, {kind} images"):
            losses = []
            for along in directions:
                with moved(network, [(size, along)]):
                    losses.append(loss(network, images, target))
            mean = sum(losses) / count
            found.append(Around(run, kind, size, 0.0, mean, mean / start - 1))
    return found


def plane(run: str, network: fx.GraphModule, images: Tensor, target: Tensor, points: int) -> list[Around]:
    """The loss over the plane of two random directions, on a grid of `points` by `points`."""
    generator = torch.Generator().manual_seed(1)
    first, second = direction(network, generator), direction(network, generator)
    places = torch.linspace(-EDGE, EDGE, points).tolist()
    start = loss(network, images, target)
    found = []
    for x in track(places, f"{run}, plane"):
        for y in places:
            with moved(network, [(x, first), (y, second)]):
                value = loss(network, images, target)
            found.append(Around(run, "test", x, y, value, value / start - 1))
    return found


def load(folder: Path, overrides: Sequence[str], count: int) -> tuple[fx.GraphModule, dict[str, tuple[Tensor, Tensor]]]:
    """A run's network, and what it is measured on.

    Args:
        folder: The run folder.
        overrides: Settings in the place of the run's, such as `data.path`.
        count: Images of each kind, at most.

    Raises:
        QdropError: If the run or its data is not there.
    """
    config = load_config(folder / SETTINGS, overrides)
    network = checkpoint.load(folder / "quantized.safetensors")
    reference = build_model(config.model.type, config.model.kwargs, config.model.path).eval()
    seen = calibration_images(config.data, min(count, config.quant.calibrate), config.process.seed)
    loader = validation_loader(config.data)
    batches = islice(loader, math.ceil(count / config.data.batch_size))  # not all of a large data set
    test = torch.cat([images for images, _ in batches])[:count]
    with torch.no_grad():
        targets = [torch.cat([reference(batch) for batch in images.split(256)]) for images in (seen, test)]
    return network, {"calibration": (seen, targets[0]), "test": (test, targets[1])}


def draw(rows: Sequence[Around], file: Path) -> None:
    """Relative change against size: a line for each run, calibration images beside test images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("calibration", "test"), strict=True):
        for run in dict.fromkeys(row.run for row in rows):
            points = [(row.size, 100 * row.change) for row in rows if (row.run, row.images) == (run, kind)]
            axes.plot(*zip((0, 0), *points, strict=True), marker="o", label=run)
        axes.set_title(f"{kind} images", fontsize=10)
        axes.set_xlabel("perturbation, share of each filter's norm")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("change of the loss, %")
    figure.savefig(file, dpi=150)


def draw_planes(rows: Sequence[Around], file: Path) -> None:
    """The loss over the plane as contours, one picture for each run, in one scale."""
    runs = list(dict.fromkeys(row.run for row in rows))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(runs), 3.6), layout="constrained")
    highest = max(row.loss for row in rows)
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        found = [row for row in rows if row.run == run]
        side = round(len(found) ** 0.5)
        grid = torch.tensor([row.loss for row in found]).view(side, side).T
        places = [row.other for row in found[:side]]
        shown = axes.contourf(places, places, grid, levels=torch.linspace(0, highest, 16).tolist())
        axes.set_title(run, fontsize=10)
        axes.set_aspect("equal")
    figure.colorbar(shown, ax=figure.axes, label="loss")
    figure.savefig(file, dpi=150)


def measure(args: argparse.Namespace) -> None:
    """All runs; figures and CSV go into `args.out`."""
    need_pictures()
    args.out.mkdir(parents=True, exist_ok=True)
    lines: list[Around] = []
    planes: list[Around] = []
    for folder in args.runs:
        network, data = load(folder, args.overrides, args.images)
        lines += around(folder.name, network, data, args.directions)
        if args.plane:
            planes += plane(folder.name, network, *data["test"], args.points)
    for row in lines:
        print(f"{row.run:32} {row.images:12} {row.size:5.2f} loss {row.loss:8.4f} {row.change:+8.1%}")
    write(lines, args.out / "flatness.csv")
    draw(lines, args.out / "flatness.png")
    if planes:
        write(planes, args.out / "plane.csv")
        draw_planes(planes, args.out / "plane.png")
    log.info("figures: %s", args.out)


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = study_parser("flatness", __doc__)
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    made.add_argument("--images", type=int, default=512, metavar="N", help="of each kind, at most")
    made.add_argument("--directions", type=int, default=5, metavar="N", help="random directions")
    made.add_argument("--plane", action="store_true", help="also the loss over two directions")
    made.add_argument("--points", type=int, default=11, metavar="N", help="of the plane, along each side")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    args = parser().parse_args(argv)
    return exit_status(lambda: measure(args))


if __name__ == "__main__":
    run_program(main)
