"""A unit in its network: what an objective that looks beyond the unit's outputs may ask for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdrop.config import ReconConfig
from qdrop.graph.split import Segment, reads
from qdrop.quantization.state import quantizing
from qdrop.solver.activations.cache import Pair, Value


class Rest(nn.Module):
    """The network behind a unit.

    Args:
        parts: The unit's segment, and all behind it.
    """

    def __init__(self, parts: Sequence[Segment]) -> None:
        super().__init__()
        self._unit, *behind = parts
        self._parts = [(part.module, part.inputs, part.outputs) for part in behind]
        written = {name for part in parts for name in part.outputs}
        read = reads(list(behind))
        self.others = tuple(name for name in read if name not in written)
        """Values that it reads beside the unit's outputs."""
        self.outputs = tuple(name for part in parts for name in part.outputs if name not in read)
        """Values that it gives: the network's outputs, as far as they come from the unit."""

    def forward(self, outs: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The network's outputs, in full precision.

        Args:
            outs: The unit's outputs `[B, ...]`.
            others: The values named by `others`.
        """
        values = dict(zip(self._unit.outputs, outs, strict=True)) | dict(zip(self.others, others, strict=True))
        for module, inputs, outputs in self._parts:
            with quantizing(module, weights=False, activations=False):
                values |= dict(zip(outputs, module(*(values[name] for name in inputs)), strict=True))
        return tuple(values[name] for name in self.outputs)


@dataclass(frozen=True)
class Surroundings:
    """One unit before it learns, with the values of all calibration images."""

    parts: Sequence[Segment]
    """Its segment, and all behind it."""
    values: Callable[[str], Pair]
    """A value `[N, ...]` that is kept, by name."""
    inputs: Sequence[Pair]
    """What the unit reads while its rounding learns."""
    targets: Sequence[Value]
    """Its outputs in full precision."""
    config: ReconConfig
    """How it learns."""
    run: Callable[[nn.Module, Sequence[Value]], tuple[Value, ...]]
    """Runs a module on rows of values, all of them in batches; what it gives is kept as activations are."""

    def rest(self) -> Rest:
        """The network behind it."""
        return Rest(self.parts)

    def quantized(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The unit's outputs `[B, ...]` with its weights rounded to the nearest, as they are before it learns."""
        module = self.parts[0].module
        with torch.no_grad(), quantizing(module, activations=self.config.drop_prob > 0):
            return tuple(module(*inputs))
