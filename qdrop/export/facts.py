"""What each value of a graph is for a batch of any size: its shape, or the size it was computed from."""

from typing import Any

import torch
from torch import Tensor, fx

from qdrop.quantization.state import quantizing

Shape = tuple[int | None, ...]
"""Sizes of a tensor's axes; None: the axis whose size depends on the batch's."""


class Facts(fx.Interpreter):
    """Runs a graph and keeps the shape of every tensor and the value of everything else.

    Args:
        model: A traced graph.
    """

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and keep what it made."""
        result = super().run_node(n)
        self.seen[n] = _describe(result)
        return result


class TensorFact:
    """A tensor of a graph.

    Args:
        shape: Its shape.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape


@torch.no_grad()
def find_facts(model: fx.GraphModule, example: Tensor) -> dict[fx.Node, Any]:
    """Run `model` on two sizes of batch and compare.

    Args:
        model: A traced graph, quantized or not.
        example: An input `[N, ...]`; one image of it is used.

    Returns:
        For each node a `TensorFact`, a tuple of them, or its plain value, such as a size, where None stands
        for a number that depends on the size of the batch.
    """
    image = example[:1]
    runs = []
    for count in (2, 3):
        facts = Facts(model)
        with quantizing(model, weights=False, activations=False):
            facts.run(image.expand(count, *image.shape[1:]))
        runs.append(facts.seen)
    return {node: _compare(fact, runs[1][node]) for node, fact in runs[0].items()}


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorFact(tuple(value.shape))
    return tuple(_describe(v) for v in value) if isinstance(value, tuple | list) else value


def _compare(one: Any, other: Any) -> Any:
    """What two runs agree on; None in place of what they do not."""
    if isinstance(one, TensorFact):
        return TensorFact(tuple(a if a == b else None for a, b in zip(one.shape, other.shape, strict=True)))
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(_compare(a, b) for a, b in zip(one, other, strict=True))
    return one if one == other else None
