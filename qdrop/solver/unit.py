"""Reconstruction of one unit: the method itself (Wei et al., QDrop, ICLR 2022, algorithm 1).

Match the unit's full-precision output while each activation is randomly left unquantized, by learning the rounding
of its weights and the scales of its activations.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from operator import add

import torch
from torch import Tensor, fx, nn

from qdrop.config import ReconConfig
from qdrop.errors import QdropError
from qdrop.graph.scopes import harden, learning_rounding
from qdrop.quantization.drop import draw_seeds
from qdrop.quantization.spec import Group, Kind
from qdrop.quantization.state import dropping, quantizers, quantizing
from qdrop.solver.activations.batches import Batch, batches_of
from qdrop.solver.activations.cache import Pair, Separate, Value
from qdrop.solver.adam import FusedAdam, cosine_rate
from qdrop.solver.compiler import Compiler
from qdrop.solver.objectives import Objective
from qdrop.solver.objectives.regularizer import RoundingSchedule
from qdrop.solver.phases import phases
from qdrop.solver.step import Inputs, UnitLoss, masks_needed

CHECK_EVERY = 100
"""Iterations between two readings of the loss: each waits for the device."""


class ReconstructionError(QdropError, RuntimeError):
    """A reconstruction that cannot go on; names the unit and what to change."""


@dataclass(frozen=True)
class Step:
    """One iteration, for whoever watches."""

    iteration: int
    """1 to the number of iterations, which is that of all phases."""
    terms: Mapping[str, Tensor]
    """The terms of the loss by name, scalars still on the device; the last is `rounding`, 0 while it is off."""

    @property
    def rounding(self) -> Tensor:
        """The roundings' regularizer."""
        return self.terms["rounding"]

    @property
    def reconstruction(self) -> Tensor:
        """What the objective says, the sum of its terms."""
        *errors, _ = self.terms.values()
        return reduce(add, errors)


Watcher = Callable[[Step], None]


def unit_generator(seed: int, unit: str) -> torch.Generator:
    """The randomness of one unit: depends on the seed and the unit's name and on nothing else, such as a device."""
    digest = hashlib.sha256(f"{seed}:{unit}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def draw_batches(count: int, batch_size: int, iters: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices `[batch_size]` into `count` cached values for each iteration, drawn with replacement."""
    for _ in range(iters):
        yield torch.randint(count, (batch_size,), generator=generator)


@dataclass(frozen=True)
class Learner:
    """Parameters that learn at one rate."""

    optimizer: FusedAdam
    """Adam over them."""
    rate: Callable[[int], float]
    """Their learning rate at an iteration, from 1."""


def learners(groups: Mapping[Group, Sequence[nn.Parameter]], config: ReconConfig) -> Iterator[Learner]:
    """All that learns, in the order of the groups: roundings at a rate that stays, grids at one that falls."""
    for group, parameters in groups.items():
        if not parameters:
            continue
        if group is Group.ROUNDING:
            yield Learner(FusedAdam(parameters), lambda iteration: config.round_lr)
        elif group is Group.WEIGHT_SCALE and config.weight_scale_lr is not None:
            yield Learner(FusedAdam(parameters), falling(config.weight_scale_lr, config.iters))
        else:
            yield Learner(FusedAdam(parameters), falling(config.scale_lr, config.iters))


def falling(rate: float, iters: int) -> Callable[[int], float]:
    """A rate that falls from `rate` to 0 over `iters` iterations, counted from 1, by a cosine."""
    return lambda iteration: cosine_rate(rate, iteration - 1, iters)


def iterations(
    unit: fx.GraphModule,
    inputs: Sequence[Pair],
    targets: Sequence[Value],
    config: ReconConfig,
    generator: torch.Generator,
    batches: Iterator[Tensor] | None = None,
    compiler: Compiler | None = None,
    learns: tuple[Kind, ...] = tuple(Kind),
    objective: Objective | None = None,
    beside: Sequence[Value] = (),
) -> Generator[Step, None, None]:
    """The iterations of a phase of :func:`reconstruct_unit`, one each time the next is asked for.

    Where weights learn, they run inside `learning_rounding`.
    """
    loss = UnitLoss(unit, config, learns, objective)
    changing = quantizers(unit, *learns)
    learning = list(learners(loss.groups(), config))
    device = next(unit.parameters()).device
    size = 1 if isinstance(targets[0], Separate) else config.batch_size  # else rows are drawn
    batches = batches or draw_batches(len(targets[0]), size, config.iters, generator)
    stream = batches_of(inputs, targets, device, beside).stream(_first(config.iters, batches))
    work = _inputs(stream, masks_needed(unit, len(inputs)), config, generator, device)

    # Closing the work also ends the batches on their way.
    with closing(work), quantizing(unit, activations=config.drop_prob > 0), dropping(unit, loss.drop):
        ready = [next(work)]
        gradients = (compiler or Compiler(config.compile))(loss, ready[0], config.iters)
        for iteration in range(1, config.iters + 1):
            # Nothing else holds a batch while the next is brought, which takes its memory.
            found = iter(gradients(ready.pop() if ready else next(work)))
            terms = {name: next(found) for name in loss.terms}
            for learner in learning:
                learner.optimizer.step(list(islice(found, len(learner.optimizer))), learner.rate(iteration))
            for quantizer in changing:
                quantizer.constrain()
            if iteration % CHECK_EVERY == 0 or iteration == config.iters:
                _check_finite(terms, iteration)
            yield Step(iteration, terms)


def reconstruct_unit(
    unit: fx.GraphModule,
    inputs: Sequence[Pair],
    targets: Sequence[Value],
    config: ReconConfig,
    generator: torch.Generator,
    batches: Iterator[Tensor] | None = None,
    watch: Watcher | None = None,
    compiler: Compiler | None = None,
    objective: Objective | None = None,
    beside: Sequence[Value] = (),
) -> float:
    """Learn the rounding and the activation scales of one calibrated unit, at once or in this order.

    Args:
        unit: A segment's module: takes one tensor or more, gives a tuple of them; its quantizers have their ranges.
        inputs: Its inputs for all calibration images `[N, C, ...]`, in both networks.
        targets: Its full-precision outputs for them `[N, C', ...]`.
        config: Iterations, rates, objective, drop.
        generator: Source of the batches and of the drop's seeds, on the CPU whatever the unit's device.
        batches: Index tensors to use instead of random ones, at least as many as iterations in all phases.
        watch: Called after each iteration.
        compiler: Holds what was compiled for other units; None: a fresh one, as the config says.
        objective: One that is prepared for this unit; None: a new one, as the config says.
        beside: What preparing it has found `[N, ...]`.

    Returns:
        Share of the weights, 0 to 1, that are not rounded to the nearest.

    Raises:
        ReconstructionError: If the loss is not finite.
        ValueError: If there are fewer batches than iterations.
    """
    flipped, done = 0.0, 0
    for phase in phases(config):
        if not any(quantizer.learns() for quantizer in quantizers(unit, *phase.learns)):
            continue
        given = phase.inputs(inputs)
        work = iterations(
            unit, given, targets, phase.config, generator, batches, compiler, phase.learns, objective, beside
        )
        rounding = learning_rounding(unit) if Kind.WEIGHT in phase.learns else nullcontext()
        # Closed also where watching raises, so that nothing is left switched on.
        with rounding, closing(work) as steps:
            for step in steps:
                if watch is not None:
                    watch(replace(step, iteration=done + step.iteration))
            if Kind.WEIGHT in phase.learns:
                flipped = harden(unit)
        done += phase.config.iters
    return flipped


def _first(count: int, batches: Iterator[Tensor]) -> Tensor:
    """As many index tensors, one for each iteration `[T, B]`.

    Raises:
        ValueError: If there are not that many.
    """
    found = list(islice(batches, count))
    if len(found) < count:
        raise ValueError(f"{len(found)} batches are given; expected as many as iterations, {count}")
    return torch.stack(found)


def _inputs(
    stream: Generator[Batch, None, None],
    masks: int,
    config: ReconConfig,
    generator: torch.Generator,
    device: torch.device,
) -> Generator[Inputs, None, None]:
    """What each iteration works on: a batch, the drop's seeds, weight and exponent of the rounding term.

    Seeds and terms of all iterations are on the device from the start: sending some in each iteration would
    make the host wait for a GPU.
    """
    schedule = RoundingSchedule(config.weight, config.warm_up, config.b_range, config.iters)
    terms = torch.tensor([schedule(t) for t in range(1, config.iters + 1)], device=device)  # [T, 2]
    seeds = draw_seeds(config.iters * masks, generator).view(config.iters, masks, 2).to(device)
    with closing(stream):
        for seed, (weight, beta) in zip(seeds, terms, strict=True):
            yield _joined(next(stream), seed, weight, beta)


def _joined(batch: Batch, seed: Tensor, weight: Tensor, beta: Tensor) -> Inputs:
    """A batch with the rest, in a function so that no variable of a generator holds it until the next one is there."""
    return Inputs(batch.full, batch.quantized, batch.target, seed, weight, beta, batch.beside)


def _check_finite(terms: Mapping[str, Tensor], iteration: int) -> None:
    value = float(reduce(add, terms.values()))
    if not math.isfinite(value):
        raise ReconstructionError(
            f"the loss is {value} at iteration {iteration}; check the calibration images and weights for values"
            " that are not finite, or lower recon.scale_lr and recon.round_lr"
        )
