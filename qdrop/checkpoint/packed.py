"""What a packed checkpoint holds, and the network it stands for. To and from files: file.py."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from qdrop.checkpoint.container import CheckpointError
from qdrop.errors import first_line
from qdrop.graph.data import GraphDataError, graph_from_data
from qdrop.graph.insert import quantize_graph, quantized_weights
from qdrop.graph.plan import Plan
from qdrop.quantization.affine import along_channels
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.packing import unpack
from qdrop.quantization.spec import Kind, QuantizerSpec
from qdrop.quantization.state import quantizers
from qdrop.sound import flaw


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. A rebuilt network, quantizers on, comes from :meth:`build`."""

    graph: dict[str, Any]
    """The network's graph, see :mod:`qdrop.graph.data`."""
    plan: Plan
    """What is quantized where, and the units."""
    tensors: dict[str, Tensor]
    """As in the file: for each quantizer `.scale` and `.zero_point`, for each quantized layer `.weight.packed`,
    and what is not quantized under its own name."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings, as plain data."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What was measured, as plain data."""

    def integers(self, spec: QuantizerSpec) -> Tensor:
        """A weight's integers, as steps above the smallest, uint8, shape of the weight.

        Raises:
            ValueError: If the file's bytes do not fit the plan.
        """
        packed = self.tensors[f"{spec.tensor}.packed"]
        steps = unpack(packed.numpy(), spec.bit, math.prod(spec.shape))
        return torch.from_numpy(steps).view(spec.shape)

    def weight(self, spec: QuantizerSpec) -> Tensor:
        """A weight as the network uses it, `scale * (integer - zero point)`, float32."""
        steps, (scale, zero_point) = self.integers(spec), self.grid(spec)
        offset = spec.integers[0] - along_channels(torch.round(zero_point), steps, spec.ch_axis)
        return (steps + offset) * along_channels(scale, steps, spec.ch_axis)

    def grid(self, spec: QuantizerSpec) -> tuple[Tensor, Tensor]:
        """Scale and zero point of a quantizer, float32 `[C]` each.

        Raises:
            ValueError: If there are not as many as the plan says, or one means nothing: see :func:`check_grid`.
        """
        scale, zero_point = self.tensors[f"{spec.name}.scale"], self.tensors[f"{spec.name}.zero_point"]
        if not scale.shape == zero_point.shape == (spec.channels,):
            raise ValueError(f"{spec.name} has {tuple(scale.shape)} scales; expected {spec.channels}")
        scale, zero_point = scale.float(), zero_point.float()
        check_grid(spec, scale, zero_point)
        return scale, zero_point

    def unquantized(self) -> dict[str, Tensor]:
        """What is not quantized, and no scale or zero point, by name."""
        taken = {f"{spec.name}{end}" for spec in self.plan.quantizers for end in (".scale", ".zero_point")}
        taken |= {f"{spec.tensor}.packed" for spec in self._weights()}
        return {name: value for name, value in self.tensors.items() if name not in taken}

    def with_metrics(self, metrics: Mapping[str, Any]) -> "Checkpoint":
        """The same with these figures recorded."""
        return replace(self, metrics=metrics)

    def build(self) -> fx.GraphModule:
        """The network, on the CPU, in evaluation mode, its quantizers on; nothing in it needs gradients.

        Its `meta["config"]` and `meta["metrics"]` hold the settings and what was measured.

        The weight of a quantized layer is what its integers stand for; switched off, its quantizer gives the
        same. Rounding it again gives the same integers: `(k*s)/s` is within 2e-5 of k for |k| < 256.

        Raises:
            CheckpointError: If the contents do not fit each other.
        """
        try:
            weights = {spec.tensor: self.weight(spec) for spec in self._weights()}
            self.check_tensors()
            model = quantize_graph(graph_from_data(self.graph, self.unquantized() | weights), self.plan)
            for quantizer in quantizers(model):
                _set_grid(quantizer, *self.grid(quantizer.spec))
        except (GraphDataError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"the contents do not fit each other: {reason(error)}") from error
        for found in quantized_weights(model):
            found.quantizer.prepare(found.weight)
        model.meta["config"], model.meta["metrics"] = dict(self.config), dict(self.metrics)
        return model.requires_grad_(False)

    def check_tensors(self) -> None:
        """Refuse what no network computes with, before anything is built from it.

        Raises:
            ValueError: Names the tensor.
            KeyError: If one is missing.
        """
        for spec in self.plan.quantizers:
            self.grid(spec)
        for name, value in self.unquantized().items():
            if told := flaw(value):
                raise ValueError(f"{name} {told}; expected dense tensors of finite numbers")

    def _weights(self) -> list[QuantizerSpec]:
        return [spec for spec in self.plan.quantizers if spec.kind is Kind.WEIGHT]


def check_grid(spec: QuantizerSpec, scale: Tensor, zero_point: Tensor) -> None:
    """Refuse a grid that nothing can be rounded to, or whose zero, once rounded, is none of its integers.

    Raises:
        ValueError: Names the tensor, a value in it and what was expected.
    """
    low, high = spec.integers
    rounded = torch.round(zero_point)  # as before use
    checks = (
        ("scale", scale, scale.isfinite() & (scale > 0), "finite numbers above 0"),
        ("zero_point", zero_point, (rounded >= low) & (rounded <= high), f"{low} to {high}"),  # false for NaN
    )
    for name, values, valid, expected in checks:
        if not valid.all():
            raise ValueError(f"{spec.name}.{name} holds {values[~valid][0].item():g}; expected {expected}")


@torch.no_grad()
def _set_grid(quantizer: FakeQuantize, scale: Tensor, zero_point: Tensor) -> None:
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(zero_point)
    quantizer.active = True


def reason(error: Exception) -> str:
    """What is wrong with contents, in words: a missing key says only its name."""
    told = first_line(error)
    return f"{told} is missing" if isinstance(error, KeyError) and error.args else told
