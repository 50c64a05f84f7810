"""Reconstruction: learn the rounding of a unit's weights and the scales of its activations.

`reconstruct` walks the units of a network; `reconstruct_unit` is the method itself (Wei et al., QDrop, ICLR
2022, algorithm 1): match the unit's full-precision output while each activation is randomly left unquantized.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from qdrop.config import ReconConfig
from qdrop.quantization.convert import Segment, segments
from qdrop.quantization.fake_quant import Drop
from qdrop.quantization.plan import Plan
from qdrop.quantization.state import (
    adarounds,
    dropping,
    learning_rounding,
    quantized_modules,
    quantizers,
    quantizing,
)
from qdrop.solver.cache import ActivationCache, Pair, run_all
from qdrop.solver.loss import RoundingLoss, reconstruction_loss
from qdrop.solver.run_folder import peak_memory_mb

CHECK_EVERY = 100
"""Iterations between two readings of the loss: each waits for the device."""


class ReconstructionError(RuntimeError):
    """A reconstruction that cannot go on; names the unit and what to change."""


@dataclass(frozen=True)
class Step:
    """One iteration, for whoever watches."""

    iteration: int
    """1 to the number of iterations."""
    reconstruction: Tensor
    """Reconstruction loss, a scalar still on the device."""
    rounding: Tensor | None
    """Rounding loss, likewise; None while it is off."""


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


Watcher = Callable[[Step], None]


def unit_generator(seed: int, unit: str, device: torch.device) -> torch.Generator:
    """The randomness of one unit: depends on the seed and the unit's name and on nothing else."""
    digest = hashlib.sha256(f"{seed}:{unit}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def draw_batches(count: int, batch_size: int, iters: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices `[batch_size]` into `count` cached values for each iteration, drawn with replacement."""
    for _ in range(iters):
        yield torch.randint(count, (batch_size,), generator=generator, device=generator.device)


def reconstruct_unit(
    unit: nn.Module,
    inputs: Pair,
    target: Tensor,
    config: ReconConfig,
    generator: torch.Generator,
    batches: Iterator[Tensor] | None = None,
    watch: Watcher | None = None,
) -> float:
    """Learn the rounding and the activation scales of one calibrated unit.

    Args:
        unit: Takes one tensor, gives one tensor; its quantizers have their ranges.
        inputs: Its input for all calibration images `[N, C, ...]`, in both networks.
        target: Its full-precision output for them `[N, C', ...]`.
        config: Iterations, rates, drop probability.
        generator: Source of the batches and the drop, on the unit's device.
        batches: Index tensors to use instead of random ones, at least as many as iterations.
        watch: Called after each iteration.

    Returns:
        Share of the weights, 0 to 1, that are not rounded to the nearest.

    Raises:
        ReconstructionError: If the loss is not finite.
    """
    device, home = generator.device, target.device
    roundings = adarounds(unit)
    grids = [q for q in quantizers(unit) if q.learned()]
    scales = [parameter for quantizer in grids for parameter in quantizer.learned()]
    rounding_loss = RoundingLoss(config.weight, config.warm_up, config.b_range, config.iters)
    optimizers = [
        Adam(parameters, lr=rate)
        for parameters, rate in (([r.alpha for r in roundings], config.round_lr), (scales, config.scale_lr))
        if parameters
    ]
    schedule = CosineAnnealingLR(optimizers[-1], T_max=config.iters) if scales else None
    drop = Drop(config.drop_prob, generator)
    input_drop = drop if config.input_prob is None else Drop(config.input_prob, generator)
    batches = batches or draw_batches(len(target), config.batch_size, config.iters, generator)

    with quantizing(unit), dropping(unit, drop), learning_rounding(unit):
        for iteration in range(1, config.iters + 1):
            chosen = next(batches).to(home)
            full, quantized = inputs.full[chosen].to(device), inputs.quantized[chosen].to(device)
            out = unit(input_drop.mix(quantized, full))  # [B, C', ...]
            error = reconstruction_loss(out, target[chosen].to(device))
            penalty = rounding_loss(roundings, iteration)
            loss = error if penalty is None else error + penalty
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            if schedule is not None:
                schedule.step()
            for grid in grids:
                grid.constrain()
            if iteration % CHECK_EVERY == 0 or iteration == config.iters:
                _check_finite(loss, iteration)
            if watch is not None:
                watch(Step(iteration, error.detach(), None if penalty is None else penalty.detach()))
    return _settle(unit)


def reconstruct(
    model: fx.GraphModule,
    plan: Plan,
    images: Tensor,
    config: ReconConfig,
    seed: int,
    device: torch.device,
    watch: Callable[[str, Step], None] | None = None,
    finished: Finished | None = None,
) -> Iterator[UnitReport]:
    """Reconstruct every unit of a calibrated model, in order; yields a report after each.

    Every value flows through the units once in full precision and once quantized; nothing is run again from
    the image.

    Args:
        model: A calibrated quantized graph, on `device`.
        plan: Its plan.
        images: Calibration images `[N, C, H, W]`, in main memory or on the device.
        config: How.
        seed: Seed; a unit's randomness depends on it and the unit's name alone.
        device: Where to compute.
        watch: Called with the unit's name after each iteration.
        finished: Units finished before, which are not learned again; each one finished here is added.

    Yields:
        A report per unit, after which the unit's weights are settled.

    Raises:
        ReconstructionError: If a loss is not finite; names the unit.
    """
    parts = segments(model, plan)
    images = images.to(device) if config.keep_gpu else images
    cache = ActivationCache(images, parts[0].inputs[0], parts)
    for index, part in enumerate(parts):
        started = time.perf_counter()
        inputs = [cache[name] for name in part.inputs]
        full = _run(part, [pair.full for pair in inputs], config, device, quantized=False)
        done = finished.restore(part.name, part.module) if finished is not None and part.unit is not None else None
        if part.unit is None or done is not None:
            rounded = _run(part, [pair.quantized for pair in inputs], config, device, quantized=True)
            cache.advance(index, part, full, rounded)
            if done is not None:
                yield done
            continue
        before = _distance(part, inputs[0].quantized, full[0], config, device)
        generator = unit_generator(seed, part.name, device)
        flipped = _reconstruct_part(part, inputs[0], full[0], config, generator, watch)
        rounded = _run(part, [inputs[0].quantized], config, device, quantized=True)
        after = _loss_over(rounded[0], full[0], config.batch_size)
        cache.advance(index, part, full, rounded)
        seconds, memory = time.perf_counter() - started, peak_memory_mb(device)
        report = UnitReport(part.name, part.unit.kind, before, after, flipped, seconds, memory)
        if finished is not None:
            finished.keep(part.module, report)
        yield report


def _reconstruct_part(
    part: Segment,
    inputs: Pair,
    target: Tensor,
    config: ReconConfig,
    generator: torch.Generator,
    watch: Callable[[str, Step], None] | None,
) -> float:
    watcher = None if watch is None else lambda step: watch(part.name, step)
    try:
        return reconstruct_unit(part.module, inputs, target, config, generator, watch=watcher)
    except ReconstructionError as error:
        raise ReconstructionError(f"unit '{part.name}': {error}") from error


def _run(
    part: Segment, inputs: Sequence[Tensor], config: ReconConfig, device: torch.device, quantized: bool
) -> tuple[Tensor, ...]:
    """What a segment writes for all images, with its quantizers on or off."""
    with quantizing(part.module, weights=quantized, activations=quantized):
        return run_all(part.module, inputs, config.batch_size, device)


def _distance(part: Segment, quantized: Tensor, full: Tensor, config: ReconConfig, device: torch.device) -> float:
    """Reconstruction loss of a segment as it stands, over all images, without keeping its output."""
    total = 0.0
    with quantizing(part.module), torch.no_grad():
        for start in range(0, len(full), config.batch_size):
            end = start + config.batch_size
            out = part.module(quantized[start:end].to(device))
            target = full[start:end].to(device)
            total += float(reconstruction_loss(out, target)) * len(target)
    return total / len(full)


def _loss_over(out: Tensor, target: Tensor, batch_size: int) -> float:
    """Reconstruction loss between two cached outputs `[N, C, ...]`."""
    parts = zip(out.split(batch_size), target.split(batch_size), strict=True)
    return sum(float(reconstruction_loss(o, t)) * len(o) for o, t in parts) / len(out)


@torch.no_grad()
def _settle(unit: nn.Module) -> float:
    """Harden the learned rounding of every layer; the share of weights not rounded to the nearest."""
    flipped = total = 0.0
    for layer in quantized_modules(unit):
        share = layer.settle()
        flipped += share * layer.weight.numel()
        total += layer.weight.numel()
    return flipped / max(1.0, total)


def _check_finite(loss: Tensor, iteration: int) -> None:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ReconstructionError(
            f"the loss is {value} at iteration {iteration}; check the calibration images and weights for values"
            " that are not finite, or lower recon.scale_lr and recon.round_lr"
        )
