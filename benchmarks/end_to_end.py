"""A whole run against the published way: ResNet-20 at W2A4.

Calibration and 2,000 iterations for each unit on 1,024 images of 32x32 (random ones, and random weights: time does not
depend on them), against the same iterations written the plain way. Those are timed for some steps of each unit and
multiplied; the range search and the movement of activations of the published code are not in that figure. Each run has
a process of its own, whose peak of memory is that until the reconstruction ends; beside it that of a process that only
imports torch and lets Adam take one step.
"""

import argparse
import json
import sys
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor, fx

from benchmarks.common import main
from benchmarks.plain_step import plain, plain_step
from benchmarks.plots import axes, bars
from benchmarks.records import Outcome, Table
from benchmarks.timing import printed_by, seconds_of
from benchmarks.whole_run import BATCH, CALIBRATE_RANGE, prepared, published
from qdrop.config import ReconConfig
from qdrop.graph.plan import Plan
from qdrop.graph.split import segments
from qdrop.quantization.state import quantizing
from qdrop.solver.activations.cache import Pair, run_all
from qdrop.solver.calibrate import calibrate

Run = dict[str, float]
"""Figures of a run, as benchmarks/whole_run.py names them."""
RUNS = {"qdrop": (), "least memory": ("--compile", "off", "--cache", "disk")}
"""Our runs, and the arguments of benchmarks/whole_run.py that tell them apart."""
PUBLISHED = {"calibration.seconds": 92.0, "reconstruction.seconds": 929.0, "peak_memory.mb": 1485.0}
"""The published code itself, measured once on a machine of this kind with one thread."""
TIMED = 10
"""Steps of the plain way that are timed in each unit."""

LEAST = """
import resource, torch
layer = torch.nn.Conv2d(3, 8, 3)
optimizer = torch.optim.Adam(layer.parameters(), fused=True)
layer(torch.randn(1, 3, 8, 8)).sum().backward()
optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
"""
"""A program that learns next to nothing with PyTorch's optimizer; prints its peak in MB."""


def plain_seconds(
    model: fx.GraphModule, plan: Plan, images: Tensor, config: ReconConfig, device: torch.device
) -> float:
    """Seconds of all iterations of all units, written the plain way; from `TIMED` of each unit."""
    calibrate(model, {"x": images[:CALIBRATE_RANGE]}, BATCH, device)
    seconds, value, rounding = 0.0, images.to(device), (config.weight, config.b_range[0])
    for part in segments(model, plan):
        with quantizing(part.module, weights=False, activations=False):
            target = run_all(part.module, (value,), BATCH, device)[0][:]
        if part.unit is not None:
            twin, given = plain(part.module, config.drop_prob), [Pair(value, value + 0.01)]
            step = plain_step(twin, given, [target], config)
            step(*rounding)
            timed = seconds_of(lambda: [step(*rounding) for _ in range(TIMED)], device)  # noqa: B023
            seconds += config.iters * timed / TIMED
        value = target
    return seconds


def measure(args: argparse.Namespace) -> Outcome:
    """2,000 iterations a unit on 1,024 images, or 50 on 128 if `args.quick`."""
    count, iters = (128, 50) if args.quick else (1024, 2000)
    common = [f"--images={count}", f"--iters={iters}", f"--threads={args.threads}", f"--device={args.device.type}"]
    # Before this process grows: a new one's peak starts from that of the process that starts it.
    least = float(printed_by("one step of Adam", "-c", LEAST))
    runs: dict[str, Run] = {}
    for name, own in RUNS.items():
        runs[name] = json.loads(printed_by(name, "-m", "benchmarks.whole_run", *common, *own))
        print(name, runs[name], flush=True)
    config = published(iters)
    slow = plain_seconds(*prepared(count, config, args.device), config, args.device)
    figures = {
        f"{name}.{figure}".replace(" ", "_"): value for name, run in runs.items() for figure, value in run.items()
    }
    figures |= {
        "plain.reconstruction.seconds": slow,
        "plain_over_ours": slow / runs["qdrop"]["reconstruction.seconds"],
        "peak_memory.of_one_step_of_adam.mb": least,
    }
    notes = (
        "Least memory: `quant.recon.compile=off quant.recon.cache.device=disk`.",
        "The published code itself was measured once, on a CPU of this kind with one thread.",
        "Images are random tensors. A run that reads image files also loads torchvision, 160 MB with the compiler's"
        " modules, which it imports itself.",
        *(goals(runs) if args.device.type == "cpu" else ()),  # the published code was measured on a CPU
        f"A process that imports torch and lets its optimizer Adam take one step holds {least:.0f} MB on the CPU.",
    )
    caption = f"{count:,} images, {iters:,} iterations for each unit, {args.threads} thread(s)."
    return Outcome(figures, (table(caption, runs, slow),), draw(runs, slow), notes)


def table(caption: str, runs: Mapping[str, Run], slow: float) -> Table:
    """Seconds and memory of our runs, of the plain steps and of the published code."""
    everything = [*runs.values(), {"reconstruction.seconds": slow}, PUBLISHED]
    forms = {"calibration.seconds": "{:.1f} s", "reconstruction.seconds": "{:.0f} s", "peak_memory.mb": "{:,.0f} MB"}
    cells = [
        (
            name.partition(".")[0].replace("_", " "),
            *(form.format(run[name]) if name in run else "-" for run in everything),
        )
        for name, form in forms.items()
    ]
    return Table(caption, ("", *runs, "plain steps", "published code"), tuple(cells))


def goals(runs: Mapping[str, Run]) -> list[str]:
    """For each goal the runs that reach it."""

    def seconds(run: Mapping[str, float]) -> float:
        return run["calibration.seconds"] + run["reconstruction.seconds"]

    met = {
        "calibration under 3 s": lambda run: run["calibration.seconds"] < 3,
        "a third of the published code's time": lambda run: seconds(run) <= seconds(PUBLISHED) / 3,
        "half its memory": lambda run: run["peak_memory.mb"] <= PUBLISHED["peak_memory.mb"] / 2,
    }
    return [
        f"Goal, {goal}: reached by {', '.join(name for name, run in runs.items() if reached(run)) or 'none'}."
        for goal, reached in met.items()
    ]


def draw(runs: Mapping[str, Run], slow: float) -> Figure:
    """Seconds of the reconstruction, ours and the plain way."""
    figure, ax = axes("ResNet-20 at W2A4, reconstruction", "", "seconds")
    ours = {name: [run["reconstruction.seconds"]] for name, run in runs.items()}
    bars(ax, ["reconstruction"], ours | {"steps written the plain way": [slow]}, "{:.0f}")
    return figure


if __name__ == "__main__":
    sys.exit(main(__doc__, "end_to_end", measure))
