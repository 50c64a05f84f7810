"""Writes into an ONNX graph what takes the place of a mark."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor


@dataclass
class Writer:
    """Writes nodes in the place of a mark."""

    graph: ir.Graph
    mark: ir.Node
    name: str
    """Begins the names of all that is written."""

    @property
    def source(self) -> ir.Value:
        """What the mark reads."""
        (value,) = self.mark.inputs
        assert value is not None
        return value

    def constant(self, suffix: str, values: Any) -> ir.Value:
        """A new constant."""
        tensor = values if isinstance(values, ir.TensorProtocol) else ir.tensor(_array(values))
        return add_constant(self.graph, f"{self.name}{suffix}", tensor)

    def node(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The value of a new node."""
        return insert_node(self.graph, self.mark, f"{self.name}/{op}", op, inputs, attributes)

    def done(self, made: ir.Value) -> None:
        """Let `made` take the place of the mark; a constant that nobody reads any more goes with it."""
        source, replaced = self.source, self.mark.outputs[0]
        if replaced.is_graph_output():
            made.name = replaced.name
        made.type, made.shape = replaced.type, replaced.shape
        replaced.replace_all_uses_with(made, replace_graph_outputs=True)
        self.graph.remove(self.mark, safe=True)
        if source.is_initializer() and not source.uses() and not source.is_graph_output():
            assert source.name is not None
            del self.graph.initializers[source.name]


def add_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new constant of a graph."""
    shape = ir.Shape(list(tensor.shape.numpy()))
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
    graph.register_initializer(value)
    return value


def insert_node(graph: ir.Graph, before: ir.Node, name: str, op: str, inputs: Any, attributes: Any) -> ir.Value:
    """The value of a new node, which stands before another one and has the value's name."""
    node = ir.node(op, inputs, attributes, name=name)
    node.outputs[0].name = name
    graph.insert_before(before, node)
    return node.outputs[0]


def _array(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float32)


def unfused(graph: ir.Graph, reader: ir.Node, value: ir.Value, name: str) -> ir.Value:
    """`value`, so written that ONNX Runtime computes in floating point with it: it fuses nothing across a Min."""
    largest = ir.tensor(np.float32(np.finfo(np.float32).max))
    return insert_node(
        graph, reader, f"{name}/Min", "Min", [value, add_constant(graph, f"{name}/largest", largest)], {}
    )
