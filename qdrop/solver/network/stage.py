"""The whole network learns, once its units have, towards what it gives in full precision.

A unit is learned towards its own output, and knows nothing of what the units behind it make of its error. Here the
error is that of the network's outputs and of the features its last layer reads, on the calibration images and without
labels.

    for every iteration:
        scales = start * exp(theta)                     # a step changes each by the same share, whatever its size
        biases = start + deviation * theta
        integers = round(start + theta)                 # of the weights; straight-through
        loss = distance(network(batch) with these, network(batch) in full precision)
        theta = Adam(gradient of the loss)
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.func import functional_call

from qdrop.config import NetworkConfig
from qdrop.graph.ends import giving, last_read, outputs
from qdrop.graph.inputs import Arguments, rows, split, tensors, to_device
from qdrop.quantization.state import quantizing
from qdrop.solver.adam import FusedAdam
from qdrop.solver.network.augment import vary
from qdrop.solver.network.learned import coarsest, integers, offsets, scales, settle, values
from qdrop.solver.unit import CHECK_EVERY, Learner, ReconstructionError, draw_batches, falling, unit_generator

log = logging.getLogger("qdrop")

NAME = "the whole network"
"""What this stage is called beside the units; its random numbers depend on the seed and on this."""

SMALLEST = 1e-12
"""Of a variance that something is divided by."""


@dataclass(frozen=True)
class NetworkReport:
    """What learning over the whole network did."""

    loss_before: float
    """Distance to full precision over all calibration images, varied as in the stage, as the units left it."""
    loss_after: float
    """The same afterwards; where it is not less, nothing was changed."""
    seconds: float
    """Wall time."""


Watch = Callable[[Iterator[Tensor]], Iterator[Tensor]]
"""Passes the batches on, and may tell how many there were."""


def learn_network(
    network: fx.GraphModule,
    inputs: Arguments,
    config: NetworkConfig,
    seed: int,
    device: torch.device,
    watch: Watch = iter,
) -> NetworkReport:
    """Learn a network whose units are learned, as a whole; nothing of it changes if that does not help.

    Args:
        network: A quantized graph on `device`, its rounding final; changed in place.
        inputs: Its arguments for all calibration images, tensors `[N, ...]`, in main memory.
        config: Iterations, rates, what is compared.
        seed: Seed of the batches.
        device: Where to compute.
        watch: Sees every batch.

    Returns:
        What it did.

    Raises:
        ReconstructionError: If a loss is not finite.
    """
    started = time.perf_counter()
    distance = Distance(network, config.features)
    share = 1 / coarsest(network)
    groups = [
        (scales(network), config.scale_rate * share),
        (offsets(network), config.bias_rate * share),
        (integers(network) if config.round_rate else [], config.round_rate),
    ]
    learned = [item for group, _ in groups for item in group]
    learners = [
        Learner(FusedAdam([item.theta for item in group]), falling(rate, config.iters))
        for group, rate in groups
        if group
    ]
    generator = unit_generator(seed, NAME)
    before = over_all(distance, {}, judged(inputs, config, seed), device)

    drawn = draw_batches(len(tensors(inputs)[0]), config.batch_size, config.iters, generator)
    for iteration, chosen in enumerate(watch(drawn), 1):
        batch = to_device(rows(inputs, chosen.tolist()), device)
        loss = distance(values(learned), vary(batch, generator) if config.augment else batch)
        if iteration % CHECK_EVERY == 0 or iteration == config.iters:
            _check_finite(loss, iteration)
        found = iter(torch.autograd.grad(loss, [item.theta for item in learned], materialize_grads=True))
        for learner in learners:
            learner.optimizer.step(list(islice(found, len(learner.optimizer))), learner.rate(iteration))

    outcome = values(learned)
    after = over_all(distance, outcome, judged(inputs, config, seed), device)
    if after < before:
        settle(network, outcome)
    else:
        log.warning(
            "%s: learning did not help, and is undone: loss %.5g -> %.5g; try lower quant.network.scale_rate,"
            " bias_rate and round_rate",
            *(NAME, before, after),
        )
    return NetworkReport(before, after, time.perf_counter() - started)


def _check_finite(loss: Tensor, iteration: int) -> None:
    if not loss.isfinite():
        raise ReconstructionError(
            f"{NAME}: the loss is {loss.item()} at iteration {iteration}; try lower quant.network.scale_rate,"
            " bias_rate and round_rate"
        )


class Distance:
    """How far the quantized network is from full precision, for a batch.

    The sum of :func:`relative_error` over all outputs, and, with a weight, over the features.

    Args:
        network: The quantized graph; as it is it gives the values of full precision, once its quantizers are off.
        features: Weight of the features.
    """

    def __init__(self, network: fx.GraphModule, features: float) -> None:
        given, read = outputs(network), last_read(network) if features else []
        self._ends = giving(network, [*given, *read])
        self._weights = [1.0] * len(given) + [features] * len(read)

    def __call__(self, values: Mapping[str, Tensor], batch: Arguments) -> Tensor:
        """The distance with `values` in the place of the network's tensors: a scalar."""
        with torch.no_grad(), quantizing(self._ends, weights=False, activations=False):
            wanted = self._ends(**batch)
        with quantizing(self._ends):
            found = functional_call(self._ends, dict(values), args=(), kwargs=batch)
        pairs = zip(found, wanted, strict=True)
        return torch.stack([w * relative_error(*pair) for w, pair in zip(self._weights, pairs, strict=True)]).sum()


def relative_error(out: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the variance of the target, both over all elements `[N, ...]`: 1 for a constant."""
    return F.mse_loss(out, target) / target.var(correction=0).clamp(min=SMALLEST)


def judged(inputs: Arguments, config: NetworkConfig, seed: int) -> Iterator[Arguments]:
    """All images once, in batches: the same in every call, and varied as those are that the stage learns from.

    Units know the calibration images as they are by heart. On these their error is less than on others, and what the
    stage gains would seem a loss.
    """
    generator = unit_generator(seed, f"{NAME}, judged")
    for batch in split(inputs, config.batch_size):
        yield vary(batch, generator) if config.augment else batch


@torch.no_grad()
def over_all(
    distance: Distance, values: Mapping[str, Tensor], batches: Iterable[Arguments], device: torch.device
) -> float:
    """The mean distance over all images of some batches."""
    total, count = 0.0, 0
    for batch in batches:
        size = len(tensors(batch)[0])
        total += float(distance(values, to_device(batch, device))) * size
        count += size
    return total / count
