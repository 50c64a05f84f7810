"""Where a network's multiply-accumulates are, and what share of them has both operands on a grid."""

import math
from collections.abc import Iterator

from torch import fx

from qdrop.graph.ops import Role, constant, multiplied, operation, row, where
from qdrop.graph.placement import Wiring, on_grid

Counts = dict[fx.Node, int]
"""Multiply-accumulates of each node that has any, for the example that shapes were found with."""


def multiply_accumulates(wiring: Wiring) -> Counts:
    """Multiply-accumulates of each product, and of each opaque operator by the weights it has."""
    found = {node: _of_product(node) for node in wiring.products}
    for node in wiring.nodes:
        if node in wiring.activations and row(node).role is Role.OPAQUE and operation(node) != "embedding":
            positions = math.prod(node.meta["shapes"][0][:-1]) if node.meta["shapes"] else 0
            if (weights := sum(map(math.prod, _weights(node)))) and node.op == "call_function":
                found[node] = positions * weights
    return found


def _of_product(node: fx.Node) -> int:
    first, second = multiplied(node)
    (out,), (left,), (right,) = (n.meta["shapes"] for n in (node, first, second))
    match operation(node):
        case "conv_transpose1d" | "conv_transpose2d" | "conv_transpose3d":
            return math.prod(left) * math.prod(right[1:])
        case "conv1d" | "conv2d" | "conv3d":
            return math.prod(out) * math.prod(right[1:])
        case _:
            return math.prod(out) * left[-1]


def share_quantized(wiring: Wiring, macs: Counts, quantized: set[str]) -> float:
    """Share of the multiply-accumulates, 0 to 1, that have both operands on a grid.

    Args:
        wiring: Roles and layers of the graph.
        macs: What :func:`multiply_accumulates` returned.
        quantized: Names of the nodes that are quantized.
    """
    named = [node for node in wiring.nodes if node.name in quantized]
    grid = on_grid(wiring, named)
    both = sum(macs[node] for node in wiring.products if all(n in grid for n in multiplied(node)))
    return both / max(1, sum(macs.values()))


def left_out(wiring: Wiring, macs: Counts) -> Iterator[str]:
    """A note for each operator that stays in full precision though it has weights of two axes or more."""
    every = {n: math.prod(n.meta["shapes"][0]) for n in wiring.nodes if n.op == "get_attr" and n.meta["shapes"]}
    quantized = {wiring.weight(layer) for layer in wiring.layers}
    for node in wiring.nodes:
        opaque = node.op == "call_function" and row(node).role is Role.OPAQUE
        alone = quantized.isdisjoint(node.all_input_nodes)  # not the table of words that is also the last layer
        if opaque and alone and (weights := sum(map(math.prod, _weights(node)))):
            share, work = weights / sum(every.values()), macs.get(node, 0) / max(1, sum(macs.values()))
            yield (
                f"{where(node)} stays in full precision, with {share:.1%} of the weights and {work:.1%} of the"
                " multiply-accumulates"
            )


def _weights(node: fx.Node) -> list[tuple[int, ...]]:
    """Shapes of the constants of two axes or more that a node reads."""
    read = [n for n in node.all_input_nodes if n.op == "get_attr"]
    return [tuple(constant(n).shape) for n in read if constant(n).ndim > 1]
