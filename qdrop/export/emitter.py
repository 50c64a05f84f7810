"""Writes the nodes of an ONNX graph, one node of the traced graph at a time."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, fx

from qdrop.export.errors import ExportError
from qdrop.export.facts import Shape
from qdrop.export.options import Container
from qdrop.quantization.ops import where

MOVING = {
    "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that give back values of their first input."""


@dataclass(frozen=True)
class Value:
    """A tensor in the ONNX graph."""

    name: str
    shape: Shape


@dataclass
class OnnxGraph:
    """Nodes and initialisers written so far."""

    container: Container
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    _uses: Counter[str] = field(default_factory=Counter)

    def unique(self, name: str) -> str:
        """A name that no node has yet: `name`, the next time `name#1`."""
        uses = self._uses[name]
        self._uses[name] += 1
        return f"{name}#{uses}" if uses else name

    def scale_of(self, value: Value) -> float | None:
        """The scale of the integers that whoever reads `value` may compute with; None if there are none.

        ONNX Runtime moves a DequantizeLinear behind operators that only move values, and computes in integers what
        then follows it.
        """
        producers = {output: node for node in self.nodes for output in node.output}
        node = producers.get(value.name)
        while node is not None and node.op_type in MOVING:
            node = producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return None
        scale = numpy_helper.to_array(self.initializers[node.input[1]])
        return float(scale) if scale.ndim == 0 else None  # several: no kernel computes with such integers


@dataclass(frozen=True)
class Emitter:
    """Writes what one node of the traced graph becomes."""

    graph: OnnxGraph
    node: fx.Node
    shape: Any
    """Shape of the value that `node` makes; of several values, their shapes."""

    def add(self, op: str, *inputs: Value | str, outputs: int = 1, **attributes: Any) -> str:
        """Append an ONNX node.

        Args:
            op: Its operator.
            inputs: What it reads; "" leaves an optional input out.
            outputs: How many values it makes.
            attributes: Its attributes.

        Returns:
            Name of its first value; the others are numbered from it, see :meth:`part`.
        """
        name = self.graph.unique(f"{self.node.name}/{op}")
        names = [value.name if isinstance(value, Value) else value for value in inputs]
        made = [self.part(name, i) for i in range(outputs)]
        self.graph.nodes.append(helper.make_node(op, names, made, name=name, **attributes))
        return made[0]

    @staticmethod
    def part(first: str, index: int) -> str:
        """Name of value `index` of the node whose first value is `first`."""
        return f"{first}:{index}" if index else first

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """An initialiser; equal ones are stored once.

        Args:
            values: Numbers or a tensor.
            dtype: NumPy type to store.
        """
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype)
        if array.size > 16:
            return self.initializer(numpy_helper.from_array(array, f"{self.node.name}/{len(self.graph.initializers)}"))
        name = f"{array.dtype}{list(array.shape)}={array.reshape(-1).tolist()}"
        return self.initializer(numpy_helper.from_array(array, name))

    def initializer(self, tensor: TensorProto) -> str:
        """Store an initialiser under its own name, which is returned."""
        self.graph.initializers[tensor.name] = tensor
        return tensor.name

    def operand(self, value: Any) -> str:
        """The name of a value in arithmetic: a tensor's, or that of a constant made of a number."""
        if isinstance(value, Value):
            return value.name
        if isinstance(value, bool | int | float):
            return self.constant(float(value))
        if isinstance(value, torch.Tensor):
            return self.constant(value)
        raise self.error("computes with a number that depends on the size of the batch")

    def reshaped(self, value: Value | str, shape: Shape | None = None) -> str:
        """`value` in the given shape, by default that of the node's value."""
        sizes = self.shape if shape is None else shape
        if sum(size is None for size in sizes) > 1:
            raise self.error(f"gives a shape {sizes} with two sizes that depend on the batch")
        return self.add("Reshape", value, self.constant([-1 if n is None else n for n in sizes], np.int64))

    def unfused(self, value: Value | str) -> str:
        """`value`, so written that ONNX Runtime computes in floating point with it: it fuses nothing across a Min."""
        return self.add("Min", value, self.constant(np.finfo(np.float32).max))

    def error(self, reason: str) -> ExportError:
        """An error that names the node."""
        return ExportError(f"{where(self.node)} {reason}; it cannot be written as ONNX")
