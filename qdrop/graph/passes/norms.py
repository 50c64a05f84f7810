"""Batch norm in evaluation mode: folded into the product before it, or else a scale and a shift for each channel."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.utils.fusion import fuse_conv_bn_weights

from qdrop.graph.ops import constant, operation, row
from qdrop.graph.passes.constants import add_constant, set_constant


@dataclass(frozen=True)
class Norm:
    """What a product took from the batch norm that was folded into it: `norm` in its node's meta, `[C]` each."""

    gamma: Tensor
    """Its weight: the standard deviation, but for the sign, that the product's output had in training."""
    beta: Tensor
    """Its bias: the mean that the output had."""
    deviation: Tensor
    """Standard deviation of what it read in training."""


_FOLDABLE = {"conv1d", "conv2d", "conv3d", "linear", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}


@torch.no_grad()
def fold_batch_norms(graph: fx.GraphModule) -> None:
    """Fold every batch norm that can be; turn the others into a multiplication and an addition."""
    for node in list(graph.graph.nodes):
        statistics = _statistics(node)
        if statistics is None:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        products = _joined(source)
        if all(_can_take(product, node if product is source else source) for product in products):
            ends = list(accumulate(product.meta["val"].shape[1] for product in products))
            for product, start, end in zip(products, [0, *ends], ends, strict=False):
                _fold(graph, product, [v[start:end] if isinstance(v, Tensor) else v for v in statistics])
            result = source
        else:
            result = _scaled_and_shifted(graph, node, source, statistics)
        for user in [u for u in node.users if u.target is operator.getitem] or [node]:
            user.replace_all_uses_with(result)
    graph.graph.eliminate_dead_code()


def _statistics(node: fx.Node) -> list[Any] | None:
    """Weight, bias, mean, variance and epsilon of the batch norm that a node is; None if it is none, or has none."""
    match operation(node):
        case "_native_batch_norm_legit_no_training":
            weight, bias, mean, var, _, eps = node.args[1:]
        case "batch_norm" if not node.args[5]:
            weight, bias, mean, var, _, _, eps, *_ = node.args[1:]
        case _:
            return None
    if not (isinstance(mean, fx.Node) and mean.op == "get_attr"):
        return None
    values = [constant(v) if isinstance(v, fx.Node) else v for v in (weight, bias, mean, var)]
    return [*values, eps]


def _joined(source: fx.Node) -> Sequence[fx.Node]:
    """The values that `source` joins along the channels; else `source` alone."""
    if operation(source) == "cat" and source.args[1:] == (1,) and len(source.users) == 1:
        return source.all_input_nodes
    return [source]


def _can_take(product: fx.Node, reader: fx.Node) -> bool:
    """Whether a batch norm behind `product` can become part of its weight: nobody else reads either."""
    if operation(product) not in _FOLDABLE or set(product.users) != {reader}:
        return False
    if operation(product) == "linear" and product.meta["val"].ndim != 2:
        return False  # its channels are the last axis, those of the norm the second
    if row(product).channels == 1 and _groups(product) > 1:
        return False
    weight, bias = product.args[1], product.args[2] if len(product.args) > 2 else None
    own = isinstance(weight, fx.Node) and weight.op == "get_attr" and len(weight.users) == 1
    return own and (bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr"))


def _groups(product: fx.Node) -> int:
    """Groups of a transposed convolution."""
    return int(product.args[6]) if len(product.args) > 6 else 1  # type: ignore[arg-type]


def _fold(graph: fx.GraphModule, product: fx.Node, statistics: list[Any]) -> None:
    """Give `product` a weight and a bias with scale and shift of the norm (Jacob et al., 2018, eq. 14)."""
    gamma, beta, mean, var, eps = statistics
    weight, bias = product.args[1], product.args[2] if len(product.args) > 2 else None
    assert isinstance(weight, fx.Node)
    before = constant(bias) if isinstance(bias, fx.Node) else None
    fused = fuse_conv_bn_weights(constant(weight), before, mean, var, eps, gamma, beta, row(product).channels == 1)
    set_constant(graph, str(weight.target), fused[0])
    path = f"{str(weight.target).rpartition('.')[0]}.bias".lstrip(".")
    with graph.graph.inserting_before(product):
        shifted = add_constant(graph, path, fused[1])
    shifted.meta["val"] = fused[1]
    product.args = (*product.args[:2], shifted, *product.args[3:])
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    norm = Norm(ones if gamma is None else gamma, zeros if beta is None else beta, (var + eps).sqrt())
    product.meta["norm"] = norm


def _scaled_and_shifted(graph: fx.GraphModule, node: fx.Node, source: fx.Node, statistics: list[Any]) -> fx.Node:
    """`source * scale + shift`, both of shape `[C, 1, ...]`."""
    gamma, beta, mean, var, eps = statistics
    scale = torch.rsqrt(var + eps) * (1 if gamma is None else gamma)
    shift = (0 if beta is None else beta) - mean * scale
    shape = [-1, *[1] * (source.meta["val"].ndim - 2)]
    result = source
    with graph.graph.inserting_before(node):
        for target, name, value in (
            (torch.ops.aten.mul.Tensor, "scale", scale),
            (torch.ops.aten.add.Tensor, "shift", shift),
        ):
            kept = add_constant(graph, f"{node.name.lstrip('_')}_{name}", value.view(shape))
            kept.meta["val"] = value.view(shape)
            result = graph.graph.call_function(target, (result, kept))
            result.meta = {**node.meta, "val": source.meta["val"]}
    return result
