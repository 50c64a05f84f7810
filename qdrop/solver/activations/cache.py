"""Values on their way through the units: each is kept from where it is written to its last reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from qdrop.graph.split import Segment, reads
from qdrop.quantization.layout import memory_format
from qdrop.solver.activations.storage import Storage
from qdrop.solver.activations.stored import Stored

Rows = Tensor | Stored
"""Rows `[N, ...]`, one for each calibration image, that are read by slice or by number."""


@dataclass(frozen=True)
class Separate:
    """One value in batches that may differ in size, for images that do."""

    batches: Sequence[Rows]
    """`[N, ...]` each."""

    def __len__(self) -> int:
        """Number of batches: what can be drawn."""
        return len(self.batches)

    def __getitem__(self, rows: slice) -> Tensor:
        """Refused: :func:`pieces` says what can be read by rows."""
        raise TypeError("a value in separate batches has no rows of its own")


Value = Rows | Separate
"""One value for all calibration images."""


def pieces(values: Sequence[Value]) -> list[tuple[Rows, ...]]:
    """What can be read row by row: the values themselves, or one batch of each after the other."""
    separate = [value.batches for value in values if isinstance(value, Separate)]
    if not separate:
        return [tuple(value for value in values if not isinstance(value, Separate))]
    return list(zip(*separate, strict=True))


@dataclass(frozen=True)
class Pair:
    """One value for all calibration images `[N, ...]`: in the full-precision network and in the quantized."""

    full: Value
    quantized: Value
    weights: Value | None = None
    """In the network with quantized weights and activations in full precision; None: nobody asks for it."""


class ActivationCache:
    """The values later segments still read.

    Args:
        inputs: The network's inputs for all calibration images `[N, ...]`, by name; the same in both networks.
        parts: All segments, in order.
    """

    def __init__(self, inputs: Mapping[str, Value], parts: list[Segment]) -> None:
        self._last_reader = reads(parts)
        self._values = {name: Pair(value, value, value) for name, value in inputs.items()}

    def __getitem__(self, name: str) -> Pair:
        return self._values[name]

    def forget_full(self, index: int) -> None:
        """Drop the full-precision values that only segment `index` and earlier ones read, once it has done so."""
        for name in self._read_until(index):
            pair = self._values[name]
            self._values[name] = replace(pair, full=pair.quantized)

    def advance(
        self,
        index: int,
        part: Segment,
        full: Sequence[Value],
        quantized: Sequence[Value],
        weights: Sequence[Value] | None = None,
    ) -> None:
        """Store what segment `index` wrote in the networks of a `Pair`; drop what only it and earlier ones read."""
        for name, f, q, w in zip(part.outputs, full, quantized, weights or (None,) * len(full), strict=True):
            self._values[name] = Pair(f, q, w)
        for name in self._read_until(index):
            del self._values[name]

    def _read_until(self, index: int) -> list[str]:
        return [name for name in self._values if self._last_reader.get(name, -1) <= index]


def run_all(
    module: nn.Module,
    inputs: Sequence[Value],
    batch_size: int,
    device: torch.device,
    storage: Storage | None = None,
) -> tuple[Value, ...]:
    """Run `module` over all calibration images, in batches of some size or in those that there are.

    Args and what is returned as of :func:`run_rows`; values may be :class:`Separate`.
    """
    found = [run_rows(module, piece, batch_size, device, storage) for piece in pieces(inputs)]
    separate = any(isinstance(value, Separate) for value in inputs)
    return tuple(map(Separate, zip(*found, strict=True))) if separate else found[0]


@torch.no_grad()
def run_rows(
    module: nn.Module,
    inputs: Sequence[Rows],
    batch_size: int,
    device: torch.device,
    storage: Storage | None = None,
) -> tuple[Rows, ...]:
    """Run `module` over some calibration images in batches.

    Args:
        module: Takes `inputs` in order, returns a tuple of tensors.
        inputs: Values of all images, `[N, ...]` each.
        batch_size: Images at a time.
        device: Where the module is.
        storage: Where results are kept; None: where the inputs are.

    Returns:
        Its outputs for all images, `[N, ...]` each.
    """
    home, count = inputs[0].device, len(inputs[0])
    results: list[Rows] = []
    for start in range(0, count, batch_size):
        batch = [value[start : start + batch_size].to(device) for value in inputs]
        outs = module(*batch)
        if not results:  # allocated once: collecting parts and joining them would need the memory twice
            new = partial(torch.empty, device=home) if storage is None else storage.new
            results = [new((count, *o.shape[1:]), dtype=o.dtype, memory_format=memory_format(o)) for o in outs]
        for result, o in zip(results, outs, strict=True):
            result[start : start + len(o)] = o
    return tuple(results)
