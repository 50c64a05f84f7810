"""Shape inference by example: a graph is run once, and the shape of each value noted."""

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

LARGEST = 1 << 29
"""Elements of a value for two images: 2 GiB in float32, far beyond any network."""


def record_shapes(graph: fx.GraphModule, given: Mapping[str, Any]) -> Any:
    """Run a graph once; note in each node's `meta` the `shapes` of the tensors in its value, a tuple for each.

    Args:
        graph: The graph.
        given: Its arguments by name.

    Returns:
        Its output.
    """
    with torch.no_grad():
        names = [str(node.target) for node in graph.graph.find_nodes(op="placeholder")]
        return _Recorder(graph).run(*(given[name] for name in names))


def infer_shapes(graph: fx.GraphModule, given: Mapping[str, Any]) -> None:
    """As :func:`record_shapes`, but nothing is computed, and no memory taken, for a graph from elsewhere.

    Raises:
        ValueError: If a value is larger than any network's.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        record_shapes(graph, given)
    for node in graph.graph.nodes:
        for shape in node.meta["shapes"]:
            if math.prod(shape) > LARGEST:
                raise ValueError(f"'{node.name}' is of shape {list(shape)}; more than {LARGEST:,} elements are refused")


def infer_rows(graph: fx.GraphModule, given: Mapping[str, Any]) -> None:
    """Note in each node's `meta` whether its value is one tensor with a row for each image, as `rows`.

    Args:
        graph: A graph whose shapes are noted.
        given: Its arguments by name, two rows of each.
    """

    def three(value: Any) -> Any:
        return value[:1].expand(3, *value.shape[1:]) if isinstance(value, Tensor) and value.ndim else value

    two = {node: dict(node.meta) for node in graph.graph.nodes}
    infer_shapes(graph, pytree.tree_map(three, dict(given)))
    for node, meta in two.items():
        by_three, by_two = ([shape[:1] for shape in m["shapes"]] for m in (node.meta, meta))
        node.meta = meta | {"rows": by_three == [(3,)] and by_two == [(2,)]}


class _Recorder(fx.Interpreter):
    """As torch's `ShapeProp`, which prints a traceback and hides the reason where a node cannot be run."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        tensors = [v for v in pytree.tree_leaves(value) if isinstance(v, Tensor)]
        n.meta["shapes"] = [tuple(v.shape) for v in tensors]
        n.meta["floating"] = all(v.is_floating_point() for v in tensors)
        if n.op == "placeholder" or (n.target is operator.getitem and n.all_input_nodes[0].meta.get("nest")):
            n.meta["nest"] = isinstance(value, (Mapping, tuple, list))
        n.meta["tuple"] = isinstance(value, (tuple, list))
        return value
