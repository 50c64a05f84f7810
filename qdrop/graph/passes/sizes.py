"""Sizes come from a tensor close by, so that a part of the network can run by itself.

A captured graph asks the network's input for every size, also at its far end.
"""

from typing import Any

import torch
from torch import SymInt, Tensor, fx

from qdrop.graph.ops import GraphError, Role, operation, row, where

_FILLED_WITH = {"zeros": 0, "ones": 1, "empty": 0}


def localize_sizes(graph: fx.GraphModule) -> None:
    """Take each size that varies from a tensor that the reader, or its reader, has at hand.

    Raises:
        GraphError: If a tensor is made in a way that would bind the graph to a device.
    """
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in order:
        if node.op == "call_function" and isinstance(node.meta.get("val"), (Tensor, tuple, list)):
            local = _Local(graph, node, order)
            if operation(node) == "reshape":
                node.args = (node.args[0], local.shape(node.args[1]))
            else:
                node.args = fx.map_arg(node.args, local)
                node.kwargs = fx.map_arg(node.kwargs, local)
            if row(node).role is Role.CREATE:
                _follow_a_tensor(graph, node, local)
    graph.graph.eliminate_dead_code()


class _Local:
    """Finds sizes for one reader."""

    def __init__(self, graph: fx.GraphModule, reader: fx.Node, order: dict[fx.Node, int]) -> None:
        self._graph, self._reader = graph, reader
        beside = [n for user in reader.users for n in user.all_input_nodes]
        near = [*reader.all_input_nodes, *beside, *reversed(order)]
        before = order[reader]
        self.tensors = [n for n in near if order.get(n, before) < before and _varying(n.meta.get("val"))]

    def __call__(self, node: fx.Node) -> fx.Node:
        """The node itself, or for a size one that reads it from a tensor at hand."""
        size = node.meta.get("val")
        if not isinstance(size, SymInt):
            return node
        for tensor in self.tensors:
            for axis, length in enumerate(tensor.meta["val"].shape):
                if _same(size, length):
                    return self._insert(torch.ops.aten.sym_size.int, (tensor, axis), node)
        return self._insert(node.target, fx.map_arg(node.args, self), node)

    def shape(self, shape: Any) -> list[Any]:
        """A shape to reshape to: -1 in the place of its first size that varies, if it has none yet."""
        sizes = list(shape)
        varying = [i for i, size in enumerate(sizes) if isinstance(size, fx.Node)]
        if varying and -1 not in sizes:
            sizes[varying[0]] = -1
        return [self(size) if isinstance(size, fx.Node) else size for size in sizes]

    def _insert(self, target: Any, args: Any, like: fx.Node) -> fx.Node:
        with self._graph.graph.inserting_before(self._reader):
            node = self._graph.graph.call_function(target, args)
        node.meta = dict(like.meta)
        return node


def _varying(value: Any) -> bool:
    return isinstance(value, Tensor) and any(isinstance(size, SymInt) for size in value.shape)


def _same(size: SymInt, length: Any) -> bool:
    return isinstance(length, SymInt) and bool(size.node.expr == length.node.expr)


def _follow_a_tensor(graph: fx.GraphModule, node: fx.Node, local: _Local) -> None:
    """Make a new tensor beside one that is there, so that it lies on the same device."""
    name, dtype = operation(node), node.meta["val"].dtype
    if name.startswith("new_") or name.endswith("_like"):
        return
    if name not in ("full", "arange", *_FILLED_WITH) or not local.tensors:
        raise GraphError(f"{where(node)} makes a tensor whose size varies, which is not supported")
    beside = local.tensors[0]
    with graph.graph.inserting_before(node):
        if name == "arange":
            made = _counted(graph, node, beside)
        else:
            fill = node.args[1] if name == "full" else _FILLED_WITH[name]
            made = graph.graph.call_function(
                torch.ops.aten.new_full.default, (beside, node.args[0], fill), {"dtype": dtype}
            )
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)


def _counted(graph: fx.GraphModule, node: fx.Node, beside: fx.Node) -> fx.Node:
    """0, 1, 2, ... as the running sum of ones."""
    if operation(node) != "arange" or len(node.args) != 1:
        raise GraphError(f"{where(node)} counts to a size that varies from other than 0, which is not supported")
    dtype = {"dtype": node.meta["val"].dtype}
    ones = graph.graph.call_function(torch.ops.aten.new_full.default, (beside, [node.args[0]], 1), dtype)
    total = graph.graph.call_function(torch.ops.aten.cumsum.default, (ones, 0), dtype)
    return graph.graph.call_function(torch.ops.aten.sub.Tensor, (total, 1))
