"""Mixed granularity: neighbouring units between which the loss swings most learn as one (Ma et al., MRECG, CVPR 2023).

Where the loss of a unit and of the one behind it differ much, the error of one is more than the other can make up for.
So the pairs with the largest `(loss_i - loss_{i+1})^2` are joined. Losses are those of the calibrated network, before
anything is learned: squared errors of the units' outputs with all weights rounded to the nearest.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, fx

from qdrop.graph.plan import Plan
from qdrop.graph.split import Segment, segments
from qdrop.graph.units import UnitSpec
from qdrop.quantization.state import quantizing
from qdrop.solver.objectives.squared_error import reconstruction_loss

log = logging.getLogger("qdrop")

SHARE = 0.25
"""Share of the pairs of neighbours that are joined, rounded up."""


def mixed(model: fx.GraphModule, plan: Plan, batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> Plan:
    """The plan with some of its units joined.

    Args:
        model: A calibrated quantized graph, on `device`.
        plan: Its plan, with blocks as units.
        batches: The network's inputs for all calibration images, by name: batch by batch `[B, ...]`.
        device: Where to compute.
    """
    parts = segments(model, plan)
    losses = unit_losses(parts, batches, device)
    pairs = widest(neighbours(parts), losses)
    for first, second in pairs:
        log.info("'%s' and '%s' learn as one: losses %.4g and %.4g", first, second, losses[first], losses[second])
    return replace(plan, units=tuple(join(plan.units, pairs)))


@torch.no_grad()
def unit_losses(
    parts: Sequence[Segment], batches: Iterable[Mapping[str, Tensor]], device: torch.device
) -> dict[str, float]:
    """Squared error of each unit's outputs, by its name; arguments as of :func:`mixed`."""
    totals = {part.name: 0.0 for part in parts if part.unit is not None}
    count = 0
    for batch in batches:
        full = {name: value.to(device) for name, value in batch.items()}
        quantized = dict(full)
        count += len(next(iter(full.values())))
        for part in parts:
            with quantizing(part.module, weights=False, activations=False):
                wanted = part.module(*(full[name] for name in part.inputs))
            with quantizing(part.module):
                outs = part.module(*(quantized[name] for name in part.inputs))
            full |= dict(zip(part.outputs, wanted, strict=True))
            quantized |= dict(zip(part.outputs, outs, strict=True))
            if part.name in totals:
                totals[part.name] += float(reconstruction_loss(outs, wanted)) * len(outs[0])
    return {name: total / count for name, total in totals.items()}


def neighbours(parts: Sequence[Segment]) -> list[tuple[str, str]]:
    """Blocks that read what the block right before them writes, each with that one before it."""
    return [
        (first.name, second.name)
        for first, second in pairwise(parts)
        if _is_block(first) and _is_block(second) and set(first.outputs) & set(second.inputs)
    ]


def widest(pairs: Sequence[tuple[str, str]], losses: Mapping[str, float]) -> list[tuple[str, str]]:
    """The :data:`SHARE` of the pairs whose losses differ most, in the order they are given."""
    count = -int(-len(pairs) * SHARE // 1)
    ranked = sorted(pairs, key=lambda pair: (losses[pair[0]] - losses[pair[1]]) ** 2, reverse=True)
    return [pair for pair in pairs if pair in ranked[:count]]


def join(units: Iterable[UnitSpec], pairs: Sequence[tuple[str, str]]) -> list[UnitSpec]:
    """Units in order, with both of each pair as one by the first one's name; pairs may form a chain."""
    before = {second: first for first, second in pairs}
    joined: dict[str, UnitSpec] = {}
    home: dict[str, str] = {}
    for unit in units:
        name = home[unit.module] = home[before[unit.module]] if unit.module in before else unit.module
        joined[name] = _joined(joined[name], unit) if name in joined else unit
    return list(joined.values())


def _joined(first: UnitSpec, second: UnitSpec) -> UnitSpec:
    return replace(
        first,
        weights=first.weights + second.weights,
        activation_quantizers=first.activation_quantizers + second.activation_quantizers,
        nodes=(*first.nodes, *second.nodes),
    )


def _is_block(part: Segment) -> bool:
    return part.unit is not None and part.unit.kind == "block"
