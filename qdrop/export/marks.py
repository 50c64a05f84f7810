"""A network whose quantizers are marks: operators of no meaning, which PyTorch's exporter passes on as they are."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from qdrop.graph.ops import constant, operation
from qdrop.quantization.fake_quant import FakeQuantize

DOMAIN, MARK = "qdrop", "Quantizer"
"""The operator of a mark, and its domain."""

Bounds = tuple[float | None, float | None]


class Mark(nn.Module):
    """The place of a quantizer, or of one and a function before it that only clips.

    Args:
        name: Path of the quantizer.
        bounds: Smallest and largest value that is left by the function; None: any.
    """

    def __init__(self, name: str, bounds: Bounds = (None, None)) -> None:
        super().__init__()
        ends = {key: end for key, end in zip(("low", "high"), bounds, strict=True) if end is not None}
        self.attributes: dict[str, Any] = {"quantizer": name, **ends}

    def forward(self, x: Tensor) -> Tensor:
        """The operator, with the shape of `x`."""
        call = torch.onnx.ops.symbolic
        return call(f"{DOMAIN}::{MARK}", (x,), self.attributes, dtype=x.dtype, shape=x.shape, version=1)


def marked(model: fx.GraphModule) -> fx.GraphModule:
    """A copy of a quantized network with a mark for each quantizer that is on; those that are off are left out.

    A function that only clips, and that only a quantizer with one scale reads, becomes part of its mark.
    """
    graph = fx.Graph()
    root: dict[str, Any] = {}
    copies: dict[fx.Node, fx.Node] = {}
    for node in model.graph.nodes:
        if node.op == "call_module":
            source, bounds = _unclipped(node.args[0])
            copies[node] = copies[source]
            if _quantizer(node).active:
                path = str(node.target)
                root[path] = Mark(path, bounds)
                copies[node] = graph.call_module(path, (copies[source],))
        elif not _absorbed(node):
            if node.op == "get_attr":
                root[str(node.target)] = constant(node)
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(root, graph).eval()


def _quantizer(node: fx.Node) -> FakeQuantize:
    assert node.graph.owning_module is not None
    found = node.graph.owning_module.get_submodule(str(node.target))
    assert isinstance(found, FakeQuantize)
    return found


def _unclipped(node: fx.Node) -> tuple[fx.Node, Bounds]:
    """What a quantizer reads before the function that only clips it, and that function's bounds."""
    if _absorbed(node):
        bounds = clip_bounds(node)
        assert bounds is not None
        return node.all_input_nodes[0], bounds
    return node, (None, None)


def _absorbed(node: fx.Node) -> bool:
    """Whether a function that only clips is done by the one active quantizer that reads it."""
    readers = list(node.users)
    if len(readers) != 1 or readers[0].op != "call_module" or clip_bounds(node) is None:
        return False
    quantizer = _quantizer(readers[0])
    return quantizer.active and quantizer.spec.ch_axis == -1


def clip_bounds(node: fx.Node) -> Bounds | None:
    """The bounds of a function that only clips, where they are known numbers; else None."""
    given = (*node.args[1:], None, None)
    match operation(node):
        case "relu":
            ends: tuple[Any, ...] = (0.0, None)
        case "relu6":
            ends = (0.0, 6.0)
        case "hardtanh":
            ends = tuple(default if end is None else end for end, default in zip(given, (-1.0, 1.0), strict=False))
        case "clamp":
            ends = given[:2]
        case _:
            return None
    if any(isinstance(end, fx.Node) for end in ends):
        return None
    low, high = (None if end is None else float(end) for end in ends)
    return low, high
