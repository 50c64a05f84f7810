"""Pointwise convolutions that skip pixels of few channels: the pixels are skipped first."""

from collections.abc import Sequence
from typing import Any, cast

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
        if (stride := _skipped(node)) is not None:
            x, *rest = cast(Any, node.args[:3])
            with graph.graph.inserting_before(node):
                for axis, step in zip((2, 3), stride, strict=True):
                    x = graph.graph.call_function(torch.ops.aten.slice.Tensor, (x, axis, 0, None, step))
                    x.meta = {"nn_module_stack": node.meta.get("nn_module_stack", {})}
            node.args = (x, *rest)


def _skipped(node: fx.Node) -> Sequence[int] | None:
    """The stride of such a convolution; None if it is none."""
    defaults: tuple[Any, ...] = (None, (1, 1), (0, 0), (1, 1), 1)
    x, weight, *given = cast(tuple[Any, ...], node.args)
    _, stride, padding, _, groups = (*given, *defaults[len(given) :])
    narrow = x.meta["val"].shape[1] < FLOATS_OF_A_REGISTER
    pointwise = tuple(weight.meta["val"].shape[2:]) == (1, 1) and not any(padding) and groups == 1
    return stride if pointwise and narrow and set(stride) != {1} else None
