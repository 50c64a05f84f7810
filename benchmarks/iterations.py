"""Accuracy against iterations: the published schedule and faster ones.

ResNet-20 on CIFAR-10 at W2A4 and W2A2, 1,024 calibration images. Schedules are compared, and one is chosen, on
training images that were not calibrated on; the test images are only reported. Needs real data:

    python -m benchmarks.iterations --data DATA/cifar10 --weights DATA/cifar10/weights/resnet20.safetensors

It takes hours, so runs that are on record are not repeated, and parts of it can be run one after the other
(`--iters 20000 --schedules published --seeds 1`); Ctrl-C ends it with the runs that are finished. Delete
benchmarks/results/iterations.json to start afresh.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import qdrop
from benchmarks.common import COLORS, HERE, Outcome, Record, Table, arguments, axes, main
from qdrop.config import PRESETS, ActivationQConfig, DataConfig, QuantConfig, ReconConfig, WeightQConfig
from qdrop.models import build_model
from qdrop.solver.accuracy import accuracy
from qdrop.solver.imagenet_util import calibration_images, validation_loader
from qdrop.solver.report import mean_and_spread

CALIBRATED, HELD_OUT = 1024, 3072
SCHEDULES: dict[str, dict[str, Any]] = {
    "published": {"round_lr": 1e-3, "scale_lr": 4e-5},
    "rounding 1e-2": {"round_lr": 1e-2, "scale_lr": 4e-5},
    "rounding 3e-2": {"round_lr": 3e-2, "scale_lr": 4e-5},
    "rounding 1e-2, scales 4e-4": {"round_lr": 1e-2, "scale_lr": 4e-4},
}
"""What is compared; the rates are those of Adam."""
FAST = SCHEDULES["rounding 3e-2"]
FACTORS: dict[str, dict[str, Any]] = {
    "rounding 1e-1": FAST | {"round_lr": 1e-1},
    "rounding weight 1e-1": FAST | {"weight": 1e-1},
    "rounding weight 1e-3": FAST | {"weight": 1e-3},
    "exponent from 10": FAST | {"b_range": (10.0, 2.0)},
    "no warm-up": FAST | {"warm_up": 0.0},
    "half warm-up": FAST | {"warm_up": 0.5},
    "batch 16": FAST | {"batch_size": 16},
    "batch 64": FAST | {"batch_size": 64},
    "drops 1 of 4": FAST | {"drop_prob": 0.75},
    "no drop": FAST | {"drop_prob": 1.0},
}
"""One setting of the fast schedule after the other, changed; compared at few iterations."""
ALL = SCHEDULES | FACTORS
BITS = {"W2A4": (2, 4), "W2A2": (2, 2)}
Key = tuple[str, str, int, int]
"""Bits, schedule, iterations, seed."""


def settings(bits: str, schedule: str, iters: int) -> QuantConfig:
    """What a run is quantized with."""
    w_bit, a_bit = BITS[bits]
    recon = replace(ReconConfig(**PRESETS["published"]), iters=iters, **ALL[schedule])
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


def name_of(key: Key, what: str) -> str:
    """The name of a figure of one run."""
    bits, schedule, iters, seed = key
    return f"{bits}.{schedule}.{iters}.seed{seed}.{what}"


def key_of(name: str) -> tuple[Key, str]:
    """The run that a figure of this name is of, and what it is."""
    bits, schedule, iters, seed, what = name.rsplit(".", 4)
    return (bits, schedule, int(iters), int(seed.removeprefix("seed"))), what


def recorded(path: Path) -> dict[str, float]:
    """Figures of the runs on record; none if there is no record."""
    return dict(Record.read(path).figures) if path.exists() else {}


def of_seeds(figures: dict[str, float], bits: str, schedule: str, iters: int, what: str) -> list[float]:
    """A figure of every seed on record."""
    named = ((*key_of(name), value) for name, value in figures.items())
    return [value for key, kind, value in named if (key[:3], kind) == ((bits, schedule, iters), what)]


def groups(figures: dict[str, float]) -> list[tuple[str, str, int]]:
    """Bits, schedule and iterations of what is on record, in the order of the table."""
    return sorted(
        {key_of(name)[0][:3] for name in figures}, key=lambda g: (list(BITS).index(g[0]), list(ALL).index(g[1]), g[2])
    )


def plot(figures: dict[str, float]) -> Figure:
    """Test top-1 against iterations, mean over seeds: a line for each schedule, solid at W2A4, dashed at W2A2."""
    figure, ax = axes("ResNet-20, CIFAR-10 (JPEG copies)", "iterations per unit", "top-1, percent")
    for bits, style in zip(BITS, ("-", "--"), strict=True):
        for color, schedule in zip(COLORS, SCHEDULES, strict=False):
            found = [group for group in groups(figures) if group[:2] == (bits, schedule)]
            points = [(group[2], statistics.mean(of_seeds(figures, *group, "top1"))) for group in found]
            if points:
                ax.plot(*zip(*points, strict=True), style, marker="o", color=color, label=f"{bits}, {schedule}")
    iters = sorted({group[2] for group in groups(figures)})
    ax.set_xscale("log")
    ax.set_xticks(iters, [f"{n:,}" for n in iters], minor=False)
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)
    return figure


def table(figures: dict[str, float], caption: str, shown: list[tuple[str, str, int]]) -> Table:
    """Agreement and top-1 of groups of runs."""
    rows = tuple(
        (bits, schedule, f"{iters:,}", str(len(top1)), mean_and_spread(agrees), mean_and_spread(top1))
        for bits, schedule, iters in shown
        for top1, agrees in [[of_seeds(figures, bits, schedule, iters, what) for what in ("top1", "agreement")]]
    )
    return Table(caption, ("bits", "schedule", "iterations", "seeds", "agreement, held out", "top-1, test"), rows)


def outcome(figures: dict[str, float]) -> Outcome:
    """All runs on record as tables and a plot."""
    known = groups(figures)
    tables = [table(figures, "Accuracy against iterations, percent.", [g for g in known if g[1] in SCHEDULES])]
    compared = {(bits, iters) for bits, schedule, iters in known if schedule in FACTORS}
    others = [g for g in known if (g[0], g[2]) in compared and (g[1] in FACTORS or ALL[g[1]] is FAST)]
    if others:
        tables.append(table(figures, "The fast schedule with one setting changed.", others))
    notes = (
        "Mean and standard deviation over seeds.",
        f"Agreement: share of {HELD_OUT:,} training images, not calibrated on, for which the prediction is that of the"
        " full-precision network; schedules are chosen by it.",
        "Runs on record are not repeated; `--iters`, `--schedules` and `--seeds` name parts of the study.",
    )
    return Outcome(figures, tuple(tables), plot(figures), notes)


def measure(args: argparse.Namespace) -> Outcome:
    """What is not on record of every schedule, number of iterations and seed; 20 iterations if `args.quick`."""
    if args.quick:
        planned = [("W2A4", schedule, 20, 1) for schedule in list(SCHEDULES)[:2]]
        figures: dict[str, float] = {}
    else:
        planned = [(b, s, n, seed) for n in args.iters for seed in args.seeds for b in BITS for s in args.schedules]
        figures = recorded(HERE / "results" / "iterations.json")
    with suppress(KeyboardInterrupt):  # what is finished by then is recorded
        for key, agrees, top1 in runs(args, [key for key in planned if name_of(key, "top1") not in figures]):
            figures |= {name_of(key, "agreement"): agrees, name_of(key, "top1"): top1}
    return outcome(figures)


def parser() -> argparse.ArgumentParser:
    """The common arguments, and where the data is."""
    made = arguments(str(__doc__), "iterations")
    made.add_argument("--data", required=True, metavar="PATH", help="CIFAR-10, as the config's data.path")
    made.add_argument("--weights", required=True, metavar="FILE", help="ResNet-20 trained on it")
    made.add_argument("--iters", type=int, nargs="+", default=[100, 300, 1000, 2000, 20000], metavar="N")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    made.add_argument(
        "--schedules", nargs="+", choices=ALL, default=list(SCHEDULES), help="default: the whole schedules"
    )
    return made


if __name__ == "__main__":
    sys.exit(main(__doc__, "iterations", measure, parser()))
