"""Which parts of a network lose its accuracy: one unit is quantized at a time, its weights or its activations.

python -m qdrop.analysis.sensitivity --config exp/w4a4/mnv2/config.yaml --set data.path=/data/imagenet
python -m qdrop.analysis.sensitivity --config FILE --evaluate     # and how good each of these networks is

Everything is rounded to the nearest, nothing is learned. What stands out is a candidate for more bits, by
`quant.overrides`. Errors of single units do not add up to that of the network, but their order is a guide.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx

from qdrop import pipeline
from qdrop.analysis.command import need_pictures, study_parser, write
from qdrop.commands.command import exit_status
from qdrop.config import Config, load_config
from qdrop.graph.ends import giving, outputs
from qdrop.graph.inputs import all_arguments, split, to_device
from qdrop.graph.plan import Plan
from qdrop.models import build_model
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import holding, quantizers, quantizing
from qdrop.runtime.console import track
from qdrop.runtime.openmp import run_program
from qdrop.solver.main_imagenet import prepare_device
from qdrop.solver.network import relative_error
from qdrop.tasks.task import make_task

BETWEEN = "(between units)"
"""What quantizers outside all units are listed under."""
ALL = "(all)"
"""The whole network, for comparison."""
log = logging.getLogger("qdrop")


@dataclass(frozen=True)
class Row:
    """One network: full precision but for one kind of quantizer of one unit."""

    unit: str
    """Path of the unit."""
    kind: str
    """`weight` or `activation`."""
    quantizers: int
    """How many are on."""
    error: float
    """Mean squared error over the variance of full precision, mean over the network's outputs; 1 for a constant."""
    figure: float | None
    """How good the network is, percent; None where that was not asked for."""


@contextmanager
def only(network: fx.GraphModule, chosen: Sequence[FakeQuantize]) -> Iterator[None]:
    """Inside: these quantizers are on and all others off."""
    with quantizing(network, weights=False, activations=False), holding(chosen, "active", True):
        yield


def of_units(network: fx.GraphModule, plan: Plan) -> dict[tuple[str, Kind], list[FakeQuantize]]:
    """The quantizers of each unit, by its path and their kind, in the plan's order; last those of the whole network."""
    unit_of = {node: unit.module for unit in plan.units for node in unit.nodes}
    paths = [*(unit.module for unit in plan.units), BETWEEN]
    found: dict[tuple[str, Kind], list[FakeQuantize]] = {(path, kind): [] for path in paths for kind in Kind}
    for quantizer in quantizers(network):
        found[unit_of.get(quantizer.spec.node, BETWEEN), quantizer.spec.kind].append(quantizer)
    there = {key: chosen for key, chosen in found.items() if chosen}
    return there | {(ALL, kind): quantizers(network, kind) for kind in Kind}


Batches = Sequence[Mapping[str, Tensor]]
"""Arguments of a network, tensors `[N, ...]`, on its device."""
Given = Sequence[Sequence[Tensor]]
"""What it gives for each of some batches: its outputs `[N, ...]`, in order."""


@torch.no_grad()
def given(network: fx.GraphModule, batches: Batches, chosen: Sequence[FakeQuantize]) -> Given:
    """The outputs of a calibrated quantized network with `chosen`, quantizers of it, alone on."""
    ends = giving(network, outputs(network))
    with only(network, chosen):
        return [ends(**batch) for batch in batches]


def error(found: Given, wanted: Given) -> float:
    """How far outputs are from those of full precision; see :attr:`Row.error`."""
    errors = [relative_error(*pair) for batch in zip(found, wanted, strict=True) for pair in zip(*batch, strict=True)]
    return float(torch.stack(errors).mean())


def rows(network: fx.GraphModule, plan: Plan, batches: Batches, figure: Callable[[], float] | None) -> list[Row]:
    """Every unit, its weights and then its activations, in the order in which they are reconstructed.

    Args:
        network: A calibrated quantized network.
        plan: Its plan.
        batches: Its arguments.
        figure: How good the network is, as it is.
    """
    made = []
    wanted = given(network, batches, ())
    for (unit, kind), chosen in track(of_units(network, plan).items(), "sensitivity"):
        value = None
        if figure is not None:
            with only(network, chosen):
                value = figure()
        found = error(given(network, batches, chosen), wanted)
        made.append(Row(unit, str(kind), len(chosen), found, value))
    return made


def calibrated(config: Config) -> tuple[fx.GraphModule, Plan, list[dict[str, Tensor]], Callable[[], float]]:
    """The network of a config with its ranges found, its plan, its arguments in batches, and how good it is."""
    device = prepare_device(config.process)
    task = make_task(config)
    model = task.network(build_model(config.model.type, config.model.kwargs, config.model.path))
    images = task.calibration(config.quant.calibrate_range, config.process.seed)
    task.check(model)
    inputs = all_arguments(model, images)
    graph = pipeline.capture(model, inputs)
    plan = pipeline.make_plan(graph, config.quant)
    network = pipeline.insert(graph, plan, device)
    pipeline.calibrate(network, inputs, config.quant, device)
    batches = [to_device(batch, device) for batch in split(inputs, config.quant.calibrate_batch)]
    return network, plan, batches, lambda: next(iter(task.evaluate(network, device).values()))


def table(found: Sequence[Row]) -> Table:
    """The rows, that with the largest error first."""
    made = Table("unit", "what is quantized", "error", "figure")
    for row in sorted(found, key=lambda row: -row.error):
        kind = f"{row.quantizers} {row.kind}{'s' if row.quantizers > 1 else ''}"
        made.add_row(row.unit, kind, f"{row.error:.4f}", "" if row.figure is None else f"{row.figure:.2f}")
    return made


def draw(found: Sequence[Row], file: Path) -> None:
    """A bar for each unit's weights and one for its activations, from the input down."""
    from matplotlib.figure import Figure

    units = list(dict.fromkeys(row.unit for row in found if row.unit != ALL))
    figure = Figure(figsize=(7, 1 + 0.28 * len(units)), layout="constrained")
    axes = figure.subplots()
    for shift, (kind, color) in zip((-0.2, 0.2), (("weight", "#3a76af"), ("activation", "#d07a3a")), strict=True):
        errors = {row.unit: row.error for row in found if row.kind == kind}
        places = [place + shift for place in range(len(units))]
        axes.barh(places, [errors.get(unit, 0.0) for unit in units], 0.38, label=f"{kind}s", color=color)
    axes.set_yticks(range(len(units)), units, fontsize=8)
    axes.set_ylim(len(units) - 0.4, -0.6)
    axes.set_xlabel("error of the network's outputs, over their variance, with this alone quantized")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def measure(args: argparse.Namespace) -> None:
    """All units; table, figure and CSV."""
    need_pictures()
    with pipeline.arithmetic():
        network, plan, batches, figure = calibrated(load_config(args.config, args.overrides))
        found = rows(network, plan, batches, figure if args.evaluate else None)
    args.out.mkdir(parents=True, exist_ok=True)
    Console().print(table(found))
    write(found, args.out / "sensitivity.csv")
    draw(found, args.out / "sensitivity.png")
    log.info("figure and CSV: %s", args.out)


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = study_parser("sensitivity", __doc__)
    made.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file with settings")
    made.add_argument("--evaluate", action="store_true", help="also how good each network is, on the data's own figure")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    args = parser().parse_args(argv)
    return exit_status(lambda: measure(args))


if __name__ == "__main__":
    run_program(main)
