"""Values enlarged to the size of another, as in a feature pyramid: the size is read from that other."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from qdrop.graph.ops import operation


def is_enlarging(node: fx.Node) -> bool:
    """Whether a node enlarges, or shrinks, a map by interpolation."""
    return operation(node).startswith("upsample")


def size_from_the_other(graph: fx.GraphModule) -> None:
    """Where what is enlarged to a fixed size is added to or joined with a map of that size, ask that map.

    A graph that was captured for images of one size so becomes one for any.
    """
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in filter(is_enlarging, order):
        size = node.args[1] if len(node.args) > 1 else None
        if not (isinstance(size, Sequence) and all(isinstance(length, int) for length in size)):
            continue
        beside = (n for user in node.users for n in user.all_input_nodes if order[n] < order[node])
        other = next((n for n in beside if _size(n) == tuple(size)), None)
        if other is not None:
            with graph.graph.inserting_before(node):
                asked = [
                    graph.graph.call_function(torch.ops.aten.sym_size.int, (other, 2 + i)) for i in range(len(size))
                ]
            node.args = (node.args[0], asked, *node.args[2:])
    graph.graph.lint()
    graph.recompile()


def _size(node: fx.Node) -> tuple[int, ...] | None:
    """Height and width of a map; None of what is none."""
    value = node.meta.get("val")
    return tuple(value.shape[2:]) if isinstance(value, Tensor) and value.ndim > 2 else None
