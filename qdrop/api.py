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
from torch import fx, nn

from qdrop import pipeline
from qdrop.checks import check_inputs, check_seed, check_sizes, check_tensors, collect, original, usable_device
from qdrop.config import ConfigError, QuantConfig, config_from_dict
from qdrop.errors import QdropError, first_line
from qdrop.graph.inputs import Calibration, Example, tensors
from qdrop.graph.ops import GraphError
from qdrop.graph.plan import Plan
from qdrop.quantization.state import quantizers
from qdrop.runtime.console import telling
from qdrop.runtime.openmp import advise
from qdrop.solver.network import NAME, NetworkReport
from qdrop.solver.recon import UnitReport

log = logging.getLogger("qdrop")

DEFAULT: dict[str, Any] = {"method": "qdrop-e2e", "recon": {"preset": "short"}}
"""Settings of a call without any: the most accurate that minutes can give."""
WIDE = 1000
"""Columns that no table needs."""


@dataclass(frozen=True)
class Report:
    """What `quantize` did."""

    plan: Plan
    """What is quantized where, and the units."""
    units: tuple[UnitReport, ...]
    """Losses before and after, in order; empty without reconstruction."""
    network: NetworkReport | None = None
    """The same of learning over the whole network; None without it."""

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
        if self.network is not None:
            losses = (f"{self.network.loss_before:.4g}", f"{self.network.loss_after:.4g}")
            table.add_row(NAME, "network", *losses, "-", f"{self.network.seconds:.1f}")
        text = StringIO()
        Console(width=WIDE, file=text).print(table)  # it takes what its cells need
        return text.getvalue().rstrip()


@torch.inference_mode(False)
@torch.enable_grad()
def quantize(
    model: nn.Module,
    calibration: Example | Iterable[Example],
    config: QuantConfig | dict[str, Any] | None = None,
    *,
    seed: int = 1005,
    device: torch.device | str | None = None,
) -> tuple[fx.GraphModule, Report]:
    """Quantize a trained network, also inside `torch.no_grad()` or `torch.inference_mode()`.

        quantized, report = qdrop.quantize(model, loader, {"w_qconfig": {"bit": 2}, "recon": {"iters": 2000}})

    Args:
        model: Any network that `torch.export` can follow, of one input or several, with any nest of outputs. It is
            left as it was.
        calibration: Images `[N, C, H, W]` or other tensors `[N, ...]`, or batches of them; of a batch, as many
            members are taken as `forward` has parameters without a default, so that of `(images, labels)` it is the
            images, and of a dict those named as parameters. The first `config.calibrate` rows are used.
            Batches may differ in height and width; an iteration then draws one of them as it is.
        config: A `QuantConfig`, or the `quant` section of a config file as a dict; None is :data:`DEFAULT`, W2A4 by
            QDrop and a stage over the whole network, in minutes. What a dict leaves out is as published, QDrop with
            20,000 iterations for each unit: `{"recon": {"preset": "fast"}}` takes 1,000, `{"method": "brecq"}` is
            another method, see docs/methods.md; `{"method": "nearest"}` or `{"recon": None}` learns nothing, in
            seconds. Which of them runs is the first line of the log; what a long run takes is told on the way.
            What `recon.cache` keeps on disk lies in the temporary folder of the system (`TMPDIR`).
        seed: Seed of the batches and of the drop.
        device: Where to compute; None: where the model's parameters are.

    Returns:
        The quantized network, a plain module on `device` that needs no gradients, as one that is loaded from a
        file; and a report.

    Raises:
        GraphError: If the network is not in float32, has weights that are not finite, is TorchScript, cannot run on
            the images, or cannot be captured; names the parameter or module and the reason.
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
    inputs = collect(model, calibration, quant.calibrate)
    check_inputs(inputs, quant)
    parameter = next(model.parameters(), torch.empty(0))
    target = usable_device(parameter.device if device is None else device)
    if target.type == "cpu":
        advise(torch.get_num_threads())

    with telling(), pipeline.arithmetic():
        graph = _capture(model, inputs)
        plan = pipeline.make_plan(graph, quant)
        network = pipeline.insert(graph, plan, target)
        pipeline.calibrate(network, inputs, quant, target)
        units = tuple(pipeline.reconstruct(network, plan, inputs, quant, seed, target))
        whole = pipeline.learn_network(network, inputs, quant, seed, target)
    return pipeline.freeze(network), Report(plan, units, whole)


def _capture(model: nn.Module, inputs: Calibration) -> fx.GraphModule:
    """:func:`qdrop.pipeline.capture`, with the reason where the model cannot even run on images `[N, C, H, W]`."""
    check_tensors(model)
    if any(value.is_inference() for value in chain(model.parameters(), model.buffers())):
        model = deepcopy(model)  # nothing can be learned from tensors that were made in inference mode
    try:
        graph = pipeline.capture(model, inputs)
        check_sizes(inputs, graph)
        return graph
    except QdropError:
        raise
    except Exception as error:  # a foreign network may raise anything
        shapes = ", ".join(str(list(value.shape[1:])) for value in tensors(inputs))
        raise GraphError(f"the model cannot run on images of shape {shapes}: {first_line(error)}") from error


def _config(config: QuantConfig | dict[str, Any] | None) -> QuantConfig:
    if config is None:
        return config_from_dict({"quant": DEFAULT}).quant
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
