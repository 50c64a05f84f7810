"""What each node of a graph computes: the shape and type of its value, found by running it once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx


class TensorMeta(NamedTuple):
    """A tensor without its values."""

    shape: torch.Size
    dtype: torch.dtype


def record_shapes(graph: fx.GraphModule, example: Tensor) -> Any:
    """Run a graph once; note in each node's `meta` its value's class, `type`, and shapes and types, `tensor_meta`.

    Args:
        graph: The graph.
        example: An input, `[N, ...]`.

    Returns:
        The output.
    """
    with torch.no_grad():
        return _Recorder(graph).run(example)


class _Recorder(fx.Interpreter):
    """As torch's `ShapeProp`, which prints a traceback and hides the reason where a node cannot be run."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["type"] = type(value)
        n.meta["tensor_meta"] = _meta(value)
        return value


def _meta(value: Any) -> TensorMeta | tuple[Any, ...] | None:
    """Of a tensor, or of each tensor in a tuple or list; None where there is none."""
    if isinstance(value, Tensor):
        return TensorMeta(value.shape, value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(meta for meta in map(_meta, value) if meta is not None) or None
    return None
