"""Values on their way through the units: each is kept from where it is written to its last reader."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdrop.quantization.convert import Segment, reads


@dataclass(frozen=True)
class Pair:
    """One value for all calibration images `[N, ...]`: in the full-precision network and in the quantized."""

    full: Tensor
    quantized: Tensor


class ActivationCache:
    """The values later segments still read.

    Args:
        images: Calibration images `[N, C, H, W]`; the input is the same in both networks.
        name: Name of the network's input in the graph.
        parts: All segments, in order.
    """

    def __init__(self, images: Tensor, name: str, parts: list[Segment]) -> None:
        self._last_reader = reads(parts)
        self._values = {name: Pair(images, images)}

    def __getitem__(self, name: str) -> Pair:
        return self._values[name]

    def advance(self, index: int, part: Segment, full: tuple[Tensor, ...], quantized: tuple[Tensor, ...]) -> None:
        """Store what segment `index` wrote; drop what only it and earlier ones read."""
        for name, f, q in zip(part.outputs, full, quantized, strict=True):
            self._values[name] = Pair(f, q)
        for name in [n for n in self._values if self._last_reader.get(n, -1) <= index]:
            del self._values[name]


@torch.no_grad()
def run_all(module: nn.Module, inputs: Sequence[Tensor], batch_size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Run `module` over all calibration images in batches; results stay where the inputs are.

    Args:
        module: Takes `inputs` in order, returns a tensor or a tuple of them.
        inputs: Values of all images, `[N, ...]` each.
        batch_size: Images at a time.
        device: Where the module is.

    Returns:
        Its outputs for all images, `[N, ...]` each.
    """
    home, count = inputs[0].device, len(inputs[0])
    results: list[Tensor] = []
    for start in range(0, count, batch_size):
        batch = [value[start : start + batch_size].to(device) for value in inputs]
        out = module(*batch)
        outs = out if isinstance(out, tuple) else (out,)
        if not results:  # allocated once: collecting parts and joining them would need the memory twice
            results = [torch.empty((count, *o.shape[1:]), dtype=o.dtype, device=home) for o in outs]
        for result, o in zip(results, outs, strict=True):
            result[start : start + len(o)] = o.to(home)
    return tuple(results)
