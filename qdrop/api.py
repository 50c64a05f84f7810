"""The notebook API: quantize a model of your own in one call."""

import logging
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

from qdrop import pipeline
from qdrop.checks import Batch, check_images, check_seed, check_tensors, collect, original, usable_device
from qdrop.config import ConfigError, QuantConfig, config_from_dict
from qdrop.errors import first_line
from qdrop.openmp import advise
from qdrop.quantization.graph import GraphError
from qdrop.quantization.plan import Plan
from qdrop.quantization.state import quantizers
from qdrop.solver.progress import telling
from qdrop.solver.recon import UnitReport

log = logging.getLogger("qdrop")

WIDE = 1000
"""Columns that no table needs."""


@dataclass(frozen=True)
class Report:
    """What `quantize` did."""

    plan: Plan
    """What is quantized where, and the units."""
    units: tuple[UnitReport, ...]
    """Losses before and after, in order; empty without reconstruction."""

    def __str__(self) -> str:
        """A table with a line for each unit; the plan, where nothing was learned."""
        if not self.units:
            return str(self.plan)
        seconds = sum(unit.seconds for unit in self.units)
        table = Table("unit", "kind", title=f"{len(self.units)} units, learned in {seconds:.0f} s")
        for column in ("loss before", "loss after", "not to the nearest", "seconds"):
            table.add_column(column, justify="right")
        for unit in self.units:
            losses = (f"{unit.loss_before:.4g}", f"{unit.loss_after:.4g}")
            table.add_row(unit.unit, unit.kind, *losses, f"{unit.flipped:.1%}", f"{unit.seconds:.1f}")
        text = StringIO()
        Console(width=WIDE, file=text).print(table)  # it takes what its cells need
        return text.getvalue().rstrip()


@torch.inference_mode(False)
@torch.enable_grad()
def quantize(
    model: nn.Module,
    calibration: Tensor | Iterable[Batch],
    config: QuantConfig | dict[str, Any] | None = None,
    *,
    seed: int = 1005,
    device: torch.device | str | None = None,
) -> tuple[fx.GraphModule, Report]:
    """Quantize a trained network, also inside `torch.no_grad()` or `torch.inference_mode()`.

        quantized, report = qdrop.quantize(model, loader, {"w_qconfig": {"bit": 2}, "recon": {"iters": 2000}})

    Args:
        model: Any network that takes one image tensor, gives one tensor and can be traced by `torch.fx`. It is
            left as it was.
        calibration: Images `[N, C, H, W]`, or batches of them; of a batch `(images, labels)` the first is
            taken. The first `config.calibrate` images are used. They need no labels.
        config: A `QuantConfig`, or the `quant` section of a config file as a dict. What it leaves out is as
            published: QDrop at W2A4 with 20,000 iterations for each unit, so None and `{}` mean the same, and
            `{"recon": {"preset": "fast"}}` takes 1,000. `{"recon": None}` learns nothing: round-to-nearest, in
            seconds. Which of them runs is the first line of the log; what a long run takes is told on the way.
            What `recon.cache` keeps on disk lies in the temporary folder of the system (`TMPDIR`).
        seed: Seed of the batches and of the drop.
        device: Where to compute; None: where the model's parameters are.

    Returns:
        The quantized network, a plain module on `device` that needs no gradients, as one that is loaded from a
        file; and a report.

    Raises:
        GraphError: If the network is not in float32, has weights that are not finite, is TorchScript, cannot run on
            the images, or cannot be traced or quantized; names the parameter or module and the reason.
        ConfigError: If the config is of another type, or has an unknown key or a value out of range.
        PlanError: If a pattern of `config.overrides` matches no layer.
        CalibrationError: If a value in the network is not finite.
        ReconstructionError: If a loss is not finite; names the unit.
        CacheError: If memory ran out wherever activations were kept.
        OSError: If they are to be kept on disk and there is no room.
        InputError: If there are fewer images than one batch of the reconstruction, or they are not finite float32
            tensors `[N, C, H, W]`, or there is no such device or seed. It is a ValueError.
        TypeError: If the model is no module.
    """
    model = original(model)
    check_seed(seed)
    if quantizers(model):
        raise GraphError("the model is quantized already; quantize the one it was made from")
    quant = _config(config)
    images = collect(calibration, quant.calibrate)
    check_images(images, quant)
    parameter = next(model.parameters(), torch.empty(0))
    target = usable_device(parameter.device if device is None else device)
    if target.type == "cpu":
        advise(torch.get_num_threads())

    with telling(), pipeline.arithmetic():
        graph = _capture(model, images)
        plan = pipeline.make_plan(graph, quant)
        network = pipeline.insert(graph, plan, target)
        pipeline.calibrate(network, images, quant, target)
        units = tuple(pipeline.reconstruct(network, plan, images, quant, seed, target))
    return pipeline.freeze(network), Report(plan, units)


def _capture(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """:func:`qdrop.pipeline.capture`, with the reason where the model cannot even run on images `[N, C, H, W]`."""
    check_tensors(model)
    if any(value.is_inference() for value in chain(model.parameters(), model.buffers())):
        model = deepcopy(model)  # nothing can be learned from tensors that were made in inference mode
    try:
        graph = pipeline.capture(model, images)
    except GraphError:
        raise
    except Exception as error:  # a foreign network may raise anything
        shape = list(images.shape[1:])
        raise GraphError(f"the model cannot run on images [C, H, W] of shape {shape}: {error}") from error
    _check_batch(graph, images)
    return graph


@torch.no_grad()
def _check_batch(graph: fx.GraphModule, images: Tensor) -> None:
    """Refuse a network that only runs on as many images as it was captured with."""
    device = next((value.device for value in chain(graph.parameters(), graph.buffers())), images.device)
    try:
        rows = len(fx.Interpreter(graph).run(images[:1].to(device)))  # which prints nothing
    except RuntimeError as error:
        raise GraphError(f"the model runs on {pipeline.EXAMPLE} images and not on 1: {first_line(error)}") from error
    if rows != 1:
        raise GraphError(f"the model gives {rows} rows for 1 image; its forward fixes the size of a batch")


def _config(config: QuantConfig | dict[str, Any] | None) -> QuantConfig:
    if config is None:
        return QuantConfig()
    if isinstance(config, QuantConfig):
        return config
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"config is a {type(config).__name__}; expected a QuantConfig or a dict with the settings of a section"
            " quant (of a whole Config it is config.quant)"
        )
    if "quant" in config:
        raise ConfigError("config holds a section quant; expected what is in that section: config['quant']")
    return config_from_dict({"quant": config}).quant
