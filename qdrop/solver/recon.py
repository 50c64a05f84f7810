"""Reconstruction of a network: its units one after the other, each value passing through them once."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from qdrop.config import ReconConfig
from qdrop.quantization.convert import Segment, segments
from qdrop.quantization.plan import Plan
from qdrop.quantization.state import quantizing
from qdrop.solver.cache import ActivationCache, Pair, Value, run_all
from qdrop.solver.loss import reconstruction_loss
from qdrop.solver.run_folder import peak_memory_mb
from qdrop.solver.step import Compiler
from qdrop.solver.storage import Storage
from qdrop.solver.unit import ReconstructionError, Step, reconstruct_unit, unit_generator


@dataclass(frozen=True)
class UnitReport:
    """What reconstruction did to a unit."""

    unit: str
    """Path of the block or layer."""
    kind: str
    """`block` or `layer`."""
    loss_before: float
    """Reconstruction loss over all calibration images with weights rounded to the nearest."""
    loss_after: float
    """The same with the learned rounding and scales."""
    flipped: float
    """Share of the weights, 0 to 1, that are not rounded to the nearest."""
    seconds: float
    """Wall time."""
    peak_memory_mb: float
    """Most memory held so far."""


class Finished(Protocol):
    """Keeps finished units, for a run that is interrupted and started again."""

    def restore(self, name: str, unit: nn.Module) -> UnitReport | None:
        """Give a unit what it learned; its report, or None if it is not finished."""

    def keep(self, unit: nn.Module, report: UnitReport) -> None:
        """Keep what a unit has learned."""


def reconstruct(
    model: fx.GraphModule,
    plan: Plan,
    images: Tensor,
    config: ReconConfig,
    seed: int,
    device: torch.device,
    watch: Callable[[str, Step], None] | None = None,
    scratch: Path | None = None,
    finished: Finished | None = None,
) -> Iterator[UnitReport]:
    """Reconstruct every unit of a calibrated model, in order; yields a report after each.

    Every value flows through the units once in full precision and once quantized; nothing is run again from
    the image. Where memory runs out, values move one place further away and the work is repeated.

    Args:
        model: A calibrated quantized graph, on `device`.
        plan: Its plan.
        images: Calibration images `[N, C, H, W]`, in main memory or on the device.
        config: How.
        seed: Seed; a unit's randomness depends on it and the unit's name alone.
        device: Where to compute.
        watch: Called with the unit's name after each iteration.
        scratch: Folder for values that are kept on disk; None: the system's temporary folder.
        finished: Units finished before, which are not learned again; each one finished here is added.

    Yields:
        A report per unit, after which the unit's weights are settled.

    Raises:
        ReconstructionError: If a loss is not finite; names the unit.
        CacheError: If memory ran out and there is no place further away.
        OSError: If values are to be kept on disk and there is no room.
    """
    parts = segments(model, plan)
    compiler = Compiler(config.compile)
    storage = Storage(config.cache, device, config.keep_gpu, scratch)
    cache = ActivationCache(storage.survive(lambda: storage.adopt(images)), parts[0].inputs[0], parts)
    for index, part in enumerate(parts):
        started = time.perf_counter()
        done = None if finished is None or part.unit is None else finished.restore(part.name, part.module)
        learns = part.unit is not None and done is None
        full = _run(part, [cache[name].full for name in part.inputs], config, device, storage, quantized=False)
        if learns:
            inputs = cache[part.inputs[0]]
            before = storage.survive(partial(_distance, part, inputs.quantized, full[0], config, device))
            flipped = _reconstruct_part(part, inputs, full[0], config, seed, device, storage, compiler, watch)
            del inputs  # the cache alone decides how long they are kept
        cache.forget_full(index)
        quantized = [cache[name].quantized for name in part.inputs]
        rounded = _run(part, quantized, config, device, storage, quantized=True)
        del quantized
        if learns:
            after = _loss_over(rounded[0], full[0], config.batch_size)
        cache.advance(index, part, full, rounded)
        del full, rounded
        if part.unit is not None and done is None:
            seconds, memory = time.perf_counter() - started, peak_memory_mb(device)
            done = UnitReport(part.name, part.unit.kind, before, after, flipped, seconds, memory)
            if finished is not None:
                finished.keep(part.module, done)
        if done is not None:
            yield done


def _reconstruct_part(
    part: Segment,
    inputs: Pair,
    target: Value,
    config: ReconConfig,
    seed: int,
    device: torch.device,
    storage: Storage,
    compiler: Compiler,
    watch: Callable[[str, Step], None] | None,
) -> float:
    """:func:`reconstruct_unit` of a segment, from the same start again if memory runs out on the way."""
    watcher = None if watch is None else lambda step: watch(part.name, step)
    start = {key: value.clone() for key, value in part.module.state_dict().items()}

    def learn() -> float:
        part.module.load_state_dict(start)
        generator = unit_generator(seed, part.name)
        return reconstruct_unit(part.module, inputs, target, config, generator, watch=watcher, compiler=compiler)

    try:
        return storage.survive(learn)
    except ReconstructionError as error:
        raise ReconstructionError(f"unit '{part.name}': {error}") from error


def _run(
    part: Segment,
    inputs: Sequence[Value],
    config: ReconConfig,
    device: torch.device,
    storage: Storage,
    quantized: bool,
) -> tuple[Value, ...]:
    """What a segment writes for all images, with its quantizers on or off."""
    with quantizing(part.module, weights=quantized, activations=quantized):
        return storage.survive(lambda: run_all(part.module, inputs, config.batch_size, device, storage))


@torch.no_grad()
def _distance(part: Segment, quantized: Value, full: Value, config: ReconConfig, device: torch.device) -> float:
    """Reconstruction loss of a segment as it stands, over all images, without keeping its output."""
    total = 0.0
    with quantizing(part.module):
        for rows in _slices(len(full), config.batch_size):
            out = part.module(quantized[rows].to(device))
            total += float(reconstruction_loss(out, full[rows].to(device))) * len(out)
    return total / len(full)


def _loss_over(out: Value, target: Value, batch_size: int) -> float:
    """Reconstruction loss between two cached outputs `[N, C, ...]`."""
    total = 0.0
    for rows in _slices(len(out), batch_size):
        ours = out[rows]
        total += float(reconstruction_loss(ours, target[rows].to(ours.device))) * len(ours)
    return total / len(out)


def _slices(count: int, size: int) -> Iterator[slice]:
    """`count` rows, `size` at a time."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
