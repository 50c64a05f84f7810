"""Reconstruction of a network: its units one after the other, each value passing through them once."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from qdrop.config import ReconConfig
from qdrop.graph.plan import Plan
from qdrop.graph.split import Segment, segments
from qdrop.quantization.state import quantizing
from qdrop.registry import OBJECTIVES
from qdrop.runtime.memory import give_back_freed_memory, peak_memory_mb
from qdrop.runtime.precision import layer_arithmetic
from qdrop.solver.activations.cache import ActivationCache, Pair, Separate, Value, pieces, run_all
from qdrop.solver.activations.storage import Storage
from qdrop.solver.activations.stored import CacheError
from qdrop.solver.compiler import Compiler
from qdrop.solver.correction import corrected
from qdrop.solver.objectives import Objective
from qdrop.solver.objectives.squared_error import reconstruction_loss
from qdrop.solver.objectives.surroundings import Surroundings
from qdrop.solver.phases import phases
from qdrop.solver.unit import ReconstructionError, Step, reconstruct_unit, unit_generator

log = logging.getLogger("qdrop")


@dataclass(frozen=True)
class UnitReport:
    """What reconstruction did to a unit."""

    unit: str
    """Path of the block or layer."""
    kind: str
    """`block` or `layer`."""
    loss_before: float
    """Squared error, whatever the objective, over all calibration images with weights rounded to the nearest."""
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
    inputs: Mapping[str, Tensor | Sequence[Tensor]],
    config: ReconConfig,
    seed: int,
    device: torch.device,
    watch: Callable[[str, Step], None] | None = None,
    scratch: Path | None = None,
    finished: Finished | None = None,
) -> Iterator[UnitReport]:
    """Reconstruct every unit of a calibrated model, in order; yields a report after each.

    Every value flows through the units once in full precision and once quantized, and where `config.input` is
    `weights` once more; nothing is run again from
    the image. Where memory runs out, values move one place further away and the work is repeated.

    Args:
        model: A calibrated quantized graph, on `device`.
        plan: Its plan.
        inputs: The network's inputs for all calibration images `[N, ...]`, by the names of their nodes
            (:func:`qdrop.graph.inputs.by_node`), in main memory or on the device; or lists of batches that differ in
            size, of which an iteration draws one.
        config: How.
        seed: Seed; a unit's randomness depends on it and the unit's name alone.
        device: Where to compute.
        watch: Called with the unit's name after each iteration.
        scratch: Folder for values that are kept on disk; None: the system's temporary folder.
        finished: Units finished before, which are not learned again; each one finished here is added.

    Yields:
        A report per unit, after which the unit's rounding is final.

    Raises:
        GraphError: If a value between two units has not one row for each image.
        ReconstructionError: If a loss is not finite; names the unit.
        CacheError: If memory ran out and there is no place further away.
        OSError: If values are to be kept on disk and there is no room.
    """
    if config.precision == "tf32" and device.type != "cuda":
        log.warning("recon.precision = tf32 needs a GPU: computed in float32")
    parts = segments(model, plan)
    storage = Storage(config.cache, device, config.keep_gpu, scratch)
    give_back_freed_memory()  # what calibration held
    units = [part.module for part in parts if part.unit is not None]
    separate = any(not isinstance(value, Tensor) for value in inputs.values())
    compiler = Compiler("off" if separate else config.compile, units)  # compiled code is for tensors of one size
    log.info(compiler.outline(units, config.batch_size, config.iters, device))
    walk = _Walk(parts, config, seed, device, storage, compiler, watch)
    adopted = storage.survive(lambda: {name: _adopted(value, storage) for name, value in inputs.items()})
    cache = ActivationCache(adopted, parts)
    for index, part in enumerate(parts):
        report = walk.through(index, part, cache, finished)
        if report is not None:
            yield report


@dataclass(frozen=True)
class _Walk:
    """The way through the segments: what is the same for all of them."""

    parts: Sequence[Segment]
    config: ReconConfig
    seed: int
    device: torch.device
    storage: Storage
    compiler: Compiler
    watch: Callable[[str, Step], None] | None

    def through(
        self, index: int, part: Segment, cache: ActivationCache, finished: Finished | None
    ) -> UnitReport | None:
        """Take all values through a segment and, where it is an unfinished unit, learn on the way.

        Args:
            index: Number of the segment.
            part: The segment.
            cache: Holds what it reads, and then what it writes.
            finished: Units finished before.

        Returns:
            Its report; None if it is not a unit.
        """
        started = time.perf_counter()
        done = None if finished is None or part.unit is None else finished.restore(part.name, part.module)
        learns = part.unit is not None and done is None
        with quantizing(part.module, weights=False, activations=False):
            full = self.run(part.module, [cache[name].full for name in part.inputs])
        if learns:
            inputs = [cache[name] for name in part.inputs]
            with quantizing(part.module):
                before = self.distance(part.module, [pair.quantized for pair in inputs], full)
            flipped = self.learn(index, inputs, full, cache)
            del inputs  # the cache alone decides how long they are kept
        cache.forget_full(index)
        with quantizing(part.module):
            rounded = self.run(part.module, [cache[name].quantized for name in part.inputs])
        weights = self.by_weights_alone(part, [cache[name].weights for name in part.inputs])
        if learns:
            after = self.distance(lambda *values: values, rounded, full)
        cache.advance(index, part, full, rounded, weights)
        give_back_freed_memory()
        if part.unit is None or done is not None:
            return done
        seconds, memory = time.perf_counter() - started, peak_memory_mb(self.device)
        report = UnitReport(part.name, part.unit.kind, before, after, flipped, seconds, memory)
        if finished is not None:
            finished.keep(part.module, report)
        return report

    def run(self, module: nn.Module, inputs: Sequence[Value]) -> tuple[Value, ...]:
        """What a module gives for all images, with its quantizers as they are."""
        size = self.config.batch_size
        return self.storage.survive(lambda: run_all(module, inputs, size, self.device, self.storage))

    def by_weights_alone(self, part: Segment, inputs: Sequence[Value | None]) -> tuple[Value, ...] | None:
        """What a segment writes where weights alone are quantized; None if no unit reads that."""
        if self.config.input == "quantized":
            return None
        with quantizing(part.module, activations=False):
            return self.run(part.module, [value for value in inputs if value is not None])

    def distance(
        self, module: Callable[..., Sequence[Tensor]], inputs: Sequence[Value], targets: Sequence[Value]
    ) -> float:
        """Squared error over all images of what a module makes of its inputs, without keeping that."""

        def measure() -> float:
            total, count = 0.0, 0
            for *given, last in pieces([*inputs, *targets]):
                for rows in _slices(len(last), self.config.batch_size):
                    values = [value[rows].to(self.device) for value in (*given, last)]
                    outs, wanted = module(*values[: len(inputs)]), values[len(inputs) :]
                    total += float(reconstruction_loss(outs, wanted)) * len(outs[0])
                count += len(last)
            return total / count

        with torch.no_grad():
            return self.storage.survive(measure)

    def learn(self, index: int, inputs: Sequence[Pair], targets: Sequence[Value], cache: ActivationCache) -> float:
        """:func:`reconstruct_unit` of a segment, from the same start again if memory runs out on the way."""
        part, watch, compiler = self.parts[index], self.watch, self.compiler
        watcher = None if watch is None else lambda step: watch(part.name, step)
        start = {key: value.clone() for key, value in part.module.state_dict().items()}
        objective: Objective = OBJECTIVES[self.config.objective]()
        beside = objective.prepare(self.around(index, inputs, targets, cache))
        inputs, targets = corrected(part.module, inputs, targets, self.config.correct_statistics, self.run)

        def attempt() -> float:
            part.module.load_state_dict(start)
            generator = unit_generator(self.seed, part.name)
            with layer_arithmetic(tf32=self.config.precision == "tf32"):
                return reconstruct_unit(
                    *(part.module, inputs, targets, self.config, generator),
                    watch=watcher,
                    compiler=compiler,
                    objective=objective,
                    beside=beside,
                )

        try:
            return self._learned(attempt)
        except ReconstructionError as error:
            raise ReconstructionError(f"unit '{part.name}': {error}") from error

    def around(
        self, index: int, inputs: Sequence[Pair], targets: Sequence[Value], cache: ActivationCache
    ) -> Surroundings:
        """A segment in its network, as it is before it learns."""
        first = phases(self.config)[0]

        def value(name: str) -> Pair:
            return first.inputs([cache[name]])[0]

        return Surroundings(self.parts[index:], value, first.inputs(inputs), targets, self.config, self.run)

    def _learned(self, attempt: Callable[[], float]) -> float:
        """What `attempt()` returns, with the cache one place further each time memory runs out, at last uncompiled."""
        try:
            return self.storage.survive(attempt)
        except CacheError:
            if not self.compiler.give_up():
                raise
            log.warning("memory ran out once more: going on without compilation")
        return self.storage.survive(attempt)


def _adopted(value: Tensor | Sequence[Tensor], storage: Storage) -> Value:
    """An input of the network in its storage."""
    return storage.adopt(value) if isinstance(value, Tensor) else Separate([storage.adopt(batch) for batch in value])


def _slices(count: int, size: int) -> Iterator[slice]:
    """`count` rows, `size` at a time."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
