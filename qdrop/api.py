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
from torch.nn.parameter import is_lazy

from qdrop import pipeline
from qdrop.config import ConfigError, QuantConfig, config_from_dict
from qdrop.errors import first_line
from qdrop.graph.inputs import Arguments, arguments, tensors
from qdrop.graph.ops import GraphError
from qdrop.graph.plan import Plan
from qdrop.openmp import advise
from qdrop.quantization.state import quantizers
from qdrop.solver.progress import telling
from qdrop.solver.recon import UnitReport

log = logging.getLogger("qdrop")

WIDE = 1000
"""Columns that no table needs."""
Batch = Tensor | tuple[Tensor, ...] | list[Tensor]


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
        GraphError: If the network is not in float32, cannot run on the images, or cannot be traced or quantized;
            names the parameter or module and the reason.
        ConfigError: If the config is of another type, or has an unknown key or a value out of range.
        PlanError: If a pattern of `config.overrides` matches no layer.
        CalibrationError: If a value in the network is not finite.
        ReconstructionError: If a loss is not finite; names the unit.
        CacheError: If memory ran out wherever activations were kept.
        OSError: If they are to be kept on disk and there is no room.
        TypeError: If the model is no module.
        ValueError: If there are fewer images than one batch of the reconstruction, or they are not finite
            float32 tensors `[N, C, H, W]`, or no such device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if quantizers(model):
        raise GraphError("the model is quantized already; quantize the one it was made from")
    quant = _config(config)
    images = _collect(calibration, quant.calibrate)
    _check(images, quant)
    parameter = next(model.parameters(), torch.empty(0))
    target = _usable(parameter.device if device is None else device)
    if target.type == "cpu":
        advise(torch.get_num_threads())

    with telling(), pipeline.arithmetic():
        inputs = arguments(model, images)
        graph = _capture(model, inputs)
        plan = pipeline.make_plan(graph, quant)
        network = pipeline.insert(graph, plan, target)
        pipeline.calibrate(network, inputs, quant, target)
        units = tuple(pipeline.reconstruct(network, plan, inputs, quant, seed, target))
    return pipeline.freeze(network), Report(plan, units)


def _usable(device: torch.device | str) -> torch.device:
    """A device that something can be put on.

    Raises:
        ValueError: If there is none of that name here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # as a name or a GPU is missing
        raise ValueError(f"device = {str(device)!r}: {first_line(error)}") from error


def _capture(model: nn.Module, inputs: Arguments) -> fx.GraphModule:
    """:func:`qdrop.pipeline.capture`, with the reason where the model cannot even run on images `[N, C, H, W]`."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise GraphError(f"parameter '{name}' has no shape yet; run the model on some images first")
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise GraphError(f"parameter '{name}' is {parameter.dtype}; expected torch.float32, as model.float() makes")
    if any(value.is_inference() for value in chain(model.parameters(), model.buffers())):
        model = deepcopy(model)  # nothing can be learned from tensors that were made in inference mode
    try:
        return pipeline.capture(model, inputs)
    except GraphError:
        raise
    except Exception as error:  # a foreign network may raise anything
        shapes = ", ".join(str(list(value.shape[1:])) for value in tensors(inputs))
        raise GraphError(f"the model cannot run on images of shape {shapes}: {error}") from error


def _check(images: Tensor, quant: QuantConfig) -> None:
    """Refuse calibration images that no good network can come from."""
    needed, setting = (1, "") if quant.recon is None else (quant.recon.batch_size, " (recon.batch_size)")
    if len(images) < needed:
        raise ValueError(f"{len(images)} calibration images; at least {needed}{setting} are needed")
    if images.dtype != torch.float32:
        raise ValueError(f"calibration images are {images.dtype}; expected torch.float32, normalised as in training")
    if not images.isfinite().all():
        raise ValueError("calibration images hold values that are not finite")
    if len(images) < quant.calibrate:
        log.warning("%d calibration images, of the %d that quant.calibrate asks for", len(images), quant.calibrate)


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


def _collect(calibration: Tensor | Iterable[Batch], count: int) -> Tensor:
    """The first `count` images `[N, C, H, W]`; they can be learned from, wherever they were made."""
    if isinstance(calibration, Tensor):
        images = _images(calibration)[:count]
        return images.clone() if images.is_inference() else images
    if not isinstance(calibration, Iterable):
        raise ValueError(f"calibration is a {type(calibration).__name__}; expected images, or batches of them")
    batches: list[Tensor] = []
    for batch in calibration:
        batches.append(_images(batch))
        if sum(len(b) for b in batches) >= count:
            break
    if len(shapes := {tuple(b.shape[1:]) for b in batches}) > 1:
        raise ValueError(f"calibration images are of different shapes [C, H, W]: {', '.join(map(str, sorted(shapes)))}")
    return torch.cat(batches)[:count] if batches else torch.empty(0)


def _images(batch: Batch) -> Tensor:
    """The images of a batch, `[N, C, H, W]`."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise ValueError(f"a calibration batch is a {type(batch).__name__}; expected images, or (images, labels)")
    if images.ndim != 4:
        raise ValueError(
            f"calibration images are of shape {list(images.shape)}; expected [N, C, H, W], or batches of that shape"
        )
    return images.detach()
