"""Rewrites of a traced graph that leave what it computes: in-place and idle operations, constants, BN."""

import copy
import inspect
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from qdrop.quantization.ops import (
    FUNCTIONAL_LAYERS,
    GraphError,
    any_layout,
    module_of,
    operation,
    out_of_place,
    place,
    where,
)
from qdrop.quantization.quantized_module import float_type

_IDLE_MODULES = (nn.Identity, nn.modules.dropout._DropoutNd)
_DROPOUTS = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "stochastic_depth",  # torchvision's
}  # fmt: skip
_LAYER_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_BATCH_NORM_ARGUMENTS = ("running_mean", "running_var", "eps", "weight", "bias")


def simplify(traced: fx.GraphModule) -> None:
    """Rewrite a graph traced in evaluation mode so that every layer stands alone, its BN folded.

    Raises:
        GraphError: If a BN cannot be folded; names it and the reason.
    """
    _clean(traced)
    _own_leaves(traced)
    _fold_constants(traced)
    _lift_layers(traced)
    _fold_batch_norms(traced)


def _clean(traced: fx.GraphModule) -> None:
    """Drop assertions, idle operations and dead code; make every operation out of place, in any memory layout."""
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in order:
        if node.op == "call_function" and node.target is torch._assert:
            traced.graph.erase_node(node)
        elif _is_idle(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
        else:
            any_layout(node)
            if out_of_place(node) and node.all_input_nodes:  # whoever reads its input later means its result
                node.all_input_nodes[0].replace_all_uses_with(
                    node,
                    delete_user_cb=lambda user: order[user] > order[node],  # noqa: B023
                )
    traced.graph.eliminate_dead_code()


def _is_idle(node: fx.Node) -> bool:
    """Whether a node gives back the one tensor it takes."""
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_function" and callable(node.target) and node.target.__name__ in _DROPOUTS:
        return not inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get("training", True)
    return isinstance(module_of(node), _IDLE_MODULES)


def _own_leaves(traced: fx.GraphModule) -> None:
    """Give the graph layer objects of its own, so that nothing done to it reaches the model.

    They share the memory of the model's parameters, which here need no gradient, and work out of place.
    """
    for node in traced.graph.find_nodes(op="call_module"):
        traced.set_submodule(str(node.target), _twin(traced.get_submodule(str(node.target))))
    for node in traced.graph.find_nodes(op="get_attr"):  # after their holders, some of which are such modules
        value = _constant(node)
        if isinstance(value, Tensor):
            own = value.detach()
            wrapped = nn.Parameter(own, requires_grad=False) if isinstance(value, nn.Parameter) else own
            setattr(*place(traced, str(node.target)), wrapped)


def _twin(module: nn.Module) -> nn.Module:
    """A copy of a module, and of those inside it, on the same memory."""
    twin = copy.copy(module)
    frozen = {n: None if p is None else nn.Parameter(p.detach(), False) for n, p in module._parameters.items()}
    buffers = {name: None if buffer is None else buffer.detach() for name, buffer in module._buffers.items()}
    children = {name: None if child is None else _twin(child) for name, child in module._modules.items()}
    twin.__dict__.update(_parameters=frozen, _buffers=buffers, _modules=children, training=False)
    if getattr(twin, "inplace", False):
        twin.inplace = False  # type: ignore[assignment]
    return twin


@torch.no_grad()
def _fold_constants(traced: fx.GraphModule) -> None:
    """Compute once what parameters alone decide, such as a weight that is standardised in every forward."""
    values: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            values[node] = _constant(node)
        elif node.op in ("call_function", "call_method") and _are_known(node.all_input_nodes, values):
            values[node] = _result(node, values)
    for node, value in values.items():
        read = any(user not in values for user in node.users)
        if node.op != "get_attr" and read and isinstance(value, Tensor):
            traced.register_buffer(f"{node.name}_folded", value)
            with traced.graph.inserting_before(node):
                folded = traced.graph.get_attr(f"{node.name}_folded")
            folded.meta = dict(node.meta)
            node.replace_all_uses_with(folded, delete_user_cb=lambda user: user not in values)
    traced.graph.eliminate_dead_code()


def _are_known(nodes: list[fx.Node], values: dict[fx.Node, Any]) -> bool:
    return bool(nodes) and all(node in values for node in nodes)


def _result(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = fx.map_arg(node.kwargs, values.__getitem__)
    if callable(node.target):
        return node.target(*args, **kwargs)
    return getattr(args[0], node.target)(*args[1:], **kwargs)


def _lift_layers(traced: fx.GraphModule) -> None:
    """Turn functions that compute with a weight into layers, as in a subclass that calls `F.linear`."""
    for node in list(traced.graph.nodes):
        kind = FUNCTIONAL_LAYERS.get(node.target) if node.op == "call_function" else None
        if kind is None:
            continue
        call = dict(zip(_LAYER_ARGUMENTS, node.args, strict=False)) | node.kwargs
        x, weight, bias = (call.pop(name, None) for name in _LAYER_ARGUMENTS[:3])
        if not _is_constant(weight) or not (bias is None or _is_constant(bias)):
            continue
        stack = node.meta.get("nn_module_stack", {})
        path, cls = next(reversed(stack.values()), ("", nn.Module))
        if not issubclass(cls, kind):  # not the forward of such a layer: a layer of its own in there
            path = f"{path}.{node.name}_layer".lstrip(".")
        traced.set_submodule(path, _layer(kind, _constant(weight), _constant(bias), call))
        with traced.graph.inserting_before(node):
            layer = traced.graph.call_module(path, (x,))
        layer.meta = {**node.meta, "nn_module_stack": {**stack, path: (path, kind)}}
        node.replace_all_uses_with(layer)
        traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()


def _is_constant(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _layer(kind: type[nn.Module], weight: Tensor, bias: Tensor | None, settings: dict[str, Any]) -> nn.Module:
    """A layer of type `kind` that computes with these parameters."""
    groups = settings.get("groups", 1)
    sizes = (weight.shape[1] * groups, weight.shape[0])
    kernel = () if kind is nn.Linear else (tuple(weight.shape[2:]),)
    layer = kind(*sizes, *kernel, bias=bias is not None, device="meta", **settings).eval()
    layer.register_parameter("weight", nn.Parameter(weight.detach(), requires_grad=False))
    if bias is not None:
        layer.register_parameter("bias", nn.Parameter(bias.detach(), requires_grad=False))
    return layer


def _fold_batch_norms(traced: fx.GraphModule) -> None:
    """Fold every BN into the layer that feeds it, or into each of those whose channels it reads joined."""
    for node in list(traced.graph.nodes):
        bn = _batch_norm(node)
        if bn is None:
            continue
        source = node.all_input_nodes[0]
        layers = _joined(source)
        for layer in layers:
            _check_foldable(node, layer)
        modules = [traced.get_submodule(str(layer.target)) for layer in layers]
        ends = list(accumulate(len(module.get_parameter("weight")) for module in modules))
        if ends[-1] != len(bn[0]):
            raise GraphError(f"cannot fold {where(node)}: it normalises something else than the channels")
        for layer, module, start, end in zip(layers, modules, [0, *ends], ends, strict=False):
            traced.set_submodule(str(layer.target), _folded(module, bn, slice(start, end)))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()


def _batch_norm(node: fx.Node) -> list[Any] | None:
    """What `_BATCH_NORM_ARGUMENTS` are for the BN that `node` computes in evaluation mode, if it does."""
    module = module_of(node)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        given = [getattr(module, name) for name in _BATCH_NORM_ARGUMENTS]
    elif node.op == "call_function" and node.target is F.batch_norm:
        call = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
        call.apply_defaults()
        given = [_constant(call.arguments[name]) for name in _BATCH_NORM_ARGUMENTS]
    else:
        return None
    if given[0] is None or given[1] is None:
        raise GraphError(f"cannot fold {where(node)}: a BN without running statistics")
    return given


def _constant(value: Any) -> Any:
    """The value of an argument: what a `get_attr` node holds, or the value itself."""
    if isinstance(value, fx.Node) and value.graph.owning_module is not None:
        return getattr(*place(value.graph.owning_module, str(value.target)))
    return value


def _joined(source: fx.Node) -> list[fx.Node]:
    """The layers whose outputs `source` joins along the channels; else `source` alone."""
    parts = source.all_input_nodes
    joins = operation(source) in ("cat", "concat") and 1 in (*source.args[1:], *source.kwargs.values())
    if joins and len(source.users) == 1 and all(_is_layer(part) for part in parts):
        return parts
    return [source]


def _is_layer(node: fx.Node) -> bool:
    module = module_of(node)
    return module is not None and float_type(module) is not None


def _check_foldable(node: fx.Node, layer: fx.Node) -> None:
    """Refuse a BN that does not directly follow a layer of its own."""
    if not _is_layer(layer):
        raise GraphError(f"cannot fold {where(node)}: it follows {where(layer)}, not a convolution or linear layer")
    if len(layer.users) > 1:
        raise GraphError(f"cannot fold {where(node)}: {where(layer)} is also read unnormalised")
    if sum(other.target == layer.target for other in node.graph.nodes if other.op == "call_module") > 1:
        raise GraphError(f"cannot fold {where(node)}: {where(layer)} is called more than once")


def _folded(layer: nn.Module, bn: list[Any], channels: slice) -> nn.Module:
    """A copy of `layer` with the scale and shift of these channels of a BN (Jacob et al., 2018, eq. 14)."""
    parts: list[Any] = [value[channels] if isinstance(value, Tensor) else value for value in bn]
    twin = copy.copy(layer)
    twin._parameters = dict(layer._parameters)
    with torch.no_grad():  # the same for a linear layer, whose weight has no positions
        fused = fuse_conv_bn_weights(layer.get_parameter("weight"), layer._parameters["bias"], *parts)
    for name, value in zip(("weight", "bias"), fused, strict=True):
        twin._parameters[name] = nn.Parameter(value.detach(), requires_grad=False)
    return twin
