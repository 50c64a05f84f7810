"""Distribution correction (Liu et al., *PD-Quant*, CVPR 2023, section 3.3): calibration images as if they were many.

A unit's full-precision inputs x are moved so that what its batch norms read has, image by image, the mean m and the
deviation d over positions that the norms hold from all training images, mu and sigma:

    sum over norms of (||m - mu||^2 + ||d - sigma||^2), mean over images, + ||x - x0||^2 / c

where x0 are the inputs as they were. The unit then learns on x, towards what it gives for it in full precision. The
norms are folded by now: of a product's output y they would have read `mu + (y - beta) * sigma / gamma`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdrop.graph.passes.norms import Norm
from qdrop.quantization.state import quantizing
from qdrop.solver.activations.cache import Pair, Value
from qdrop.solver.adam import FusedAdam
from qdrop.solver.objectives.squared_error import reconstruction_loss

C = 0.02
"""c; of the published code for ResNets, as is the rate."""
RATE = 1e-3
"""Learning rate of the inputs (Adam)."""
SMALLEST = 1e-6
"""Of a variance, for a root that can be differentiated, and of a gamma that something is divided by."""


def corrected(
    unit: fx.GraphModule,
    inputs: Sequence[Pair],
    targets: Sequence[Value],
    iters: int,
    run: Callable[[nn.Module, Sequence[Value]], tuple[Value, ...]],
) -> tuple[Sequence[Pair], Sequence[Value]]:
    """What a unit learns on: its inputs and targets, as they are without norms or iterations, else corrected.

    Args:
        unit: The unit.
        inputs: Its inputs for all calibration images `[N, ...]`, in both networks; those of the quantized one stay.
        targets: Its full-precision outputs `[N, ...]`.
        iters: Iterations for each batch.
        run: Runs a module on rows of values, all of them in batches.
    """
    if iters == 0 or not has_norms(unit):
        return inputs, targets
    with quantizing(unit, weights=False, activations=False):
        found = run(Corrected(unit, iters), [pair.full for pair in inputs])
    full = found[: len(inputs)]
    return [replace(pair, full=value) for pair, value in zip(inputs, full, strict=True)], found[len(inputs) :]


class Corrected(nn.Module):
    """From a unit's inputs `[B, ...]` to corrected ones, and what the unit gives for them.

    Args:
        unit: The unit, its quantizers off.
        iters: Iterations for each batch.
    """

    def __init__(self, unit: fx.GraphModule, iters: int) -> None:
        super().__init__()
        self._unit, self._iters = unit, iters

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The corrected inputs, then the unit's outputs; inputs of integers, such as numbers of words, stay."""
        moved = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
        leaves = [x for x in moved if x.requires_grad]
        start = [x for x in inputs if x.is_floating_point()]
        if has_norms(self._unit) and leaves:
            optimizer = FusedAdam(leaves)
            for _ in range(self._iters):
                with torch.enable_grad():
                    loss = mismatch(self._unit, moved) + reconstruction_loss(leaves, start) / C
                optimizer.step(torch.autograd.grad(loss, leaves), RATE)
        found = [x.detach() for x in moved]
        with torch.no_grad():
            return (*found, *self._unit(*found))


def has_norms(unit: fx.GraphModule) -> bool:
    """Whether a batch norm was folded into anything in a unit."""
    return any("norm" in node.meta for node in unit.graph.nodes)


def mismatch(unit: fx.GraphModule, inputs: Sequence[Tensor]) -> Tensor:
    """How far what the norms of a unit read is from their statistics: the first sum above, a scalar."""
    watch = _Watch(unit)
    watch.run(*inputs)
    return torch.stack(watch.found).sum()


def mismatch_of(out: Tensor, norm: Norm) -> Tensor:
    """The same for one product.

    Args:
        out: Its output `[B, C, ...]`, the norm folded into it.
        norm: The norm.
    """
    values = out.reshape(*out.shape[:2], -1)  # [B, C, positions]
    means, deviations = values.mean(2), (values.var(2, correction=0) + SMALLEST).sqrt()
    scale = norm.deviation / norm.gamma.abs().clamp(min=SMALLEST)
    used = norm.gamma.abs() > SMALLEST  # a channel that is always beta tells nothing of what was read
    of_mean = ((means - norm.beta) * scale).square() * used
    of_deviation = (deviations * scale - norm.deviation).square() * used
    return (of_mean + of_deviation).sum() / len(out)


class _Watch(fx.Interpreter):
    """Runs a unit and takes the mismatch of each norm."""

    def __init__(self, unit: fx.GraphModule) -> None:
        super().__init__(unit)
        self.found: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if "norm" in n.meta:
            self.found.append(mismatch_of(out, n.meta["norm"]))
        return out
