"""Pointwise convolutions that skip pixels of few channels: the pixels are skipped first."""

import torch
from torch import fx

FLOATS_OF_A_REGISTER = 8
"""Of AVX2."""


def slice_before_strided_products(graph: fx.GraphModule) -> None:
    """Skip pixels in front of a strided 1x1 convolution whose input has less than a register of channels.

    oneDNN must not be asked for a gradient there: on a CPU without AVX-512, with channels last, it writes beyond its
    memory (version 3.13, in torch 2.15).
    """
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default):
        x, weight, bias, stride, padding, *_ = (*node.args, *(None, [1, 1], [0, 0])[len(node.args) - 2 :])
        pointwise = tuple(weight.meta["val"].shape[2:]) == (1, 1) and not any(padding) and len(node.args) < 7
        if not pointwise or set(stride) == {1} or x.meta["val"].shape[1] >= FLOATS_OF_A_REGISTER:
            continue
        with graph.graph.inserting_before(node):
            for axis, step in zip((2, 3), stride, strict=True):
                x = graph.graph.call_function(torch.ops.aten.slice.Tensor, (x, axis, 0, None, step))
                x.meta = {**node.meta, "val": _every(x.args[0].meta["val"], axis, step)}
        node.args = (x, weight, bias)


def _every(value: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    return value[(slice(None),) * axis + (slice(None, None, step),)]
