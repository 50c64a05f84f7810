"""What a network learns as a whole: tensors of it, each by how far it is from its start."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn

from qdrop.graph.ends import biases
from qdrop.graph.insert import QuantizedWeight, quantized_weights
from qdrop.graph.ops import place
from qdrop.quantization.rounding.base import HeldRounding
from qdrop.quantization.state import quantizers

HALF = 0.49
"""Of a step: just inside what is rounded to an integer."""


@dataclass(frozen=True)
class Learned:
    """A tensor of the network that learns, by how far it is from its start."""

    name: str
    """Its path in the network."""
    start: Tensor
    """Its value before."""
    theta: nn.Parameter
    """How far it is, in its shape: 0 at first."""
    move: Callable[[Tensor, Tensor], Tensor]
    """Its value, of both."""


def scales(network: fx.GraphModule) -> list[Learned]:
    """Those of all quantizers, which move by shares of their size: `start * exp(theta)`."""
    found = {f"{quantizer.spec.name}.scale": quantizer.scale for quantizer in quantizers(network)}
    return [_learned(name, start, lambda start, theta: start * theta.exp()) for name, start in found.items()]


def offsets(network: fx.GraphModule) -> list[Learned]:
    """All biases, which move by shares of the standard deviation over their layer: `start + deviation * theta`."""
    return [_learned(name, network.get_parameter(name), _by_deviation) for name in biases(network)]


def integers(network: fx.GraphModule) -> list[Learned]:
    """Those of all weights, which move by steps of their grid: `round(start + theta)`, straight-through.

    Each starts where its weight lies between the integers, but within the half step that rounds to the integer that
    its unit learned.
    """
    return [
        _integers_of(found, found.quantizer.rounding.levels)
        for found in quantized_weights(network)
        if isinstance(found.quantizer.rounding, HeldRounding)
    ]


@torch.no_grad()
def _integers_of(found: QuantizedWeight, levels: Tensor) -> Learned:
    quantizer = found.quantizer
    scale, zero_point = quantizer.grid_along(found.weight)
    between = found.weight / scale + zero_point - quantizer.qmin
    start = levels + (between - levels).clamp(-HALF, HALF)
    top = quantizer.qmax - quantizer.qmin
    return _learned(f"{quantizer.spec.name}.rounding.levels", start, partial(_rounded, top=top))


def _rounded(start: Tensor, theta: Tensor, top: int) -> Tensor:
    between = (start + theta).clamp(-HALF, top + HALF)
    return between + (between.round() - between).detach()  # exact: neither sum nor difference is rounded


def coarsest(network: fx.GraphModule) -> int:
    """The largest integer, counted from 0, of the grid with the fewest bits.

    Rates are divided by it. A change of a scale by a share moves the outermost level by that share of so many steps,
    and Adam moves also what has no gradient but noise: a network of finer grids is hurt by smaller changes.
    """
    return min((2**quantizer.spec.bit - 1 for quantizer in quantizers(network)), default=1)


def _by_deviation(start: Tensor, theta: Tensor) -> Tensor:
    return start + start.std(correction=0) * theta


def _learned(name: str, start: Tensor, move: Callable[[Tensor, Tensor], Tensor]) -> Learned:
    start = start.detach().clone()
    return Learned(name, start, nn.Parameter(torch.zeros_like(start)), move)


def values(learned: Sequence[Learned]) -> dict[str, Tensor]:
    """What the network's tensors are now, by path; differentiable."""
    return {item.name: item.move(item.start, item.theta) for item in learned}


@torch.no_grad()
def settle(network: fx.GraphModule, values: Mapping[str, Tensor]) -> None:
    """Put values in the place of the network's own tensors."""
    for name, value in values.items():
        holder, attribute = place(network, name)
        getattr(holder, attribute).copy_(value)
