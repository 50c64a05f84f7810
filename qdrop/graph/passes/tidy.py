"""Idle operators go; those that stay are bound to no device and no memory format."""

import torch
from torch import Tensor, fx

from qdrop.graph.ops import operation

_ASSERTIONS = {"_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size"}
_IDLE = {"alias", "detach", "clone", "contiguous", "lift_fresh_copy", "lift_fresh", "dropout", "feature_dropout"}
_TYPED = {"_to_copy", "to", "type_as"}
_RESHAPED = {"view", "_unsafe_view"}
_BINDING = {"device", "pin_memory", "layout", "memory_format", "non_blocking"}


def tidy(graph: fx.GraphModule) -> None:
    """Drop assertions and idle operators; free all others from device and memory format."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        name = operation(node)
        if name in _ASSERTIONS:
            graph.graph.erase_node(node)
        elif name in _IDLE or (name in _TYPED and _keeps_type(node)):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif name == "type_as":
            node.target, node.args = torch.ops.aten.to.dtype, (node.args[0], node.meta["val"].dtype)
        elif name in _RESHAPED and not isinstance(node.args[1], torch.dtype):
            node.target = torch.ops.aten.reshape.default  # also takes values that lie channels-last in memory
        else:
            node.kwargs = {key: value for key, value in node.kwargs.items() if key not in _BINDING}
    graph.graph.eliminate_dead_code()


def _keeps_type(node: fx.Node) -> bool:
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return isinstance(before, Tensor) and before.dtype == after.dtype
