"""From a model to one clean graph: traced with `torch.fx`, nothing in place, BN folded, shapes known."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from qdrop.quantization.ops import FUNCTIONAL_LAYERS, module_of, out_of_place
from qdrop.quantization.quantized_module import QUANTIZED, float_type

TOLERANCE = 1e-3
"""Largest difference of the folded graph's output from the model's, relative to its largest value."""

BatchNormStatistics = tuple[Tensor, Tensor, float, Tensor | None, Tensor | None]


class GraphError(ValueError):
    """A model that cannot be traced, folded or planned; names the module and the reason."""


class _Tracer(fx.Tracer):
    """Traces through everything but torch's own layers; says which module it could not follow."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return float_type(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except GraphError:
            raise
        except Exception as error:
            path = self.path_of_module(m)
            raise GraphError(f"cannot trace module '{path}' ({type(m).__name__}): {error}") from error


def trace(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """Trace `model` in evaluation mode into a graph that is safe to cut up and quantize.

    The model is left as it was, its parameters are shared; folded layers get new ones.

    Args:
        model: Any module that takes one tensor and that `torch.fx` can trace.
        example: An input, `[N, ...]`, to find shapes with and to check the graph against the model.

    Returns:
        The graph: evaluation mode, no in-place operation, BN folded into the layer before it, each node with
        the shape of its value in `meta["tensor_meta"]` and its modules in `meta["nn_module_stack"]`.

    Raises:
        GraphError: If the model cannot be traced, a BN not folded, or the graph computes something else.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        try:
            graph = _Tracer().trace(model)
        except GraphError:
            raise
        except Exception as error:
            raise GraphError(f"cannot trace {type(model).__name__}: {error}") from error
        traced = fx.GraphModule(model, graph, class_name=type(model).__name__)
        with torch.inference_mode():
            expected = model(example)
    finally:
        for module, training in modes.items():
            module.training = training
    _clean(traced)
    _own_leaves(traced)
    _fold_batch_norms(traced)
    traced.graph.lint()
    traced.recompile()
    with torch.no_grad():
        result = ShapeProp(traced).propagate(example)
    _check_same(expected, result)
    return traced


def _own_leaves(traced: fx.GraphModule) -> None:
    """Give the graph layer objects of its own, so that nothing done to it reaches the model.

    They share the memory of the model's parameters, which here need no gradient, and work out of place.
    """
    for node in traced.graph.nodes:
        module = module_of(node)
        if module is not None:
            traced.set_submodule(str(node.target), _twin(module))
        elif node.op == "get_attr":
            holder, _, name = str(node.target).rpartition(".")
            value = _constant(node)
            if isinstance(value, nn.Parameter):
                setattr(traced.get_submodule(holder), name, nn.Parameter(value.detach(), requires_grad=False))


def _twin(module: nn.Module) -> nn.Module:
    """A copy of a module, and of those inside it, on the same memory."""
    twin = copy.copy(module)
    frozen = {
        n: None if p is None else nn.Parameter(p.detach(), False) for n, p in module._parameters.items()
    }
    children = {name: None if child is None else _twin(child) for name, child in module._modules.items()}
    twin.__dict__.update(
        _parameters=frozen, _buffers=dict(module._buffers), _modules=children, training=False
    )
    if getattr(twin, "inplace", False):
        twin.inplace = False  # type: ignore[assignment]
    return twin


def _clean(traced: fx.GraphModule) -> None:
    """Drop assertions and dead code; make every operation out of place."""
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            traced.graph.erase_node(node)
        else:
            out_of_place(node)
    traced.graph.eliminate_dead_code()


def _fold_batch_norms(traced: fx.GraphModule) -> None:
    """Fold every BN into the layer that feeds it."""
    for node in list(traced.graph.nodes):
        statistics = _batch_norm(node)
        if statistics is None:
            continue
        layer = node.all_input_nodes[0]
        _check_foldable(node, layer)
        traced.set_submodule(str(layer.target), _folded(module_of(layer), statistics))
        node.replace_all_uses_with(layer)
        traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()


def _batch_norm(node: fx.Node) -> BatchNormStatistics | None:
    """Running mean, running variance, eps, weight and bias if `node` is a BN in evaluation mode."""
    module = module_of(node)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.running_mean is None or module.running_var is None:
            raise GraphError(f"cannot fold '{node.target}': a BN without running statistics")
        return module.running_mean, module.running_var, module.eps, module.weight, module.bias
    if node.op == "call_function" and node.target is F.batch_norm:
        call = node.normalized_arguments(node.graph.owning_module, normalize_to_only_use_kwargs=True)
        if call is None:
            raise GraphError(f"cannot fold {_where(node)}: its arguments are not plain")
        given = {name: _constant(value) for name, value in call.kwargs.items() if name != "input"}
        if given["running_mean"] is None or given["running_var"] is None:
            raise GraphError(f"cannot fold {_where(node)}: a BN without running statistics")
        return given["running_mean"], given["running_var"], given["eps"], given["weight"], given["bias"]
    return None


def _constant(value: Any) -> Any:
    """The value of an argument: what a `get_attr` node holds, or the value itself."""
    if isinstance(value, fx.Node) and value.graph.owning_module is not None:
        holder, _, name = str(value.target).rpartition(".")
        return getattr(value.graph.owning_module.get_submodule(holder), name)
    return value


def _check_foldable(node: fx.Node, layer: fx.Node) -> None:
    """Refuse a BN that does not directly follow a layer of its own."""
    module = module_of(layer)
    if module is None or float_type(module) is None:
        raise GraphError(
            f"cannot fold {_where(node)}: it follows {_where(layer)}, not a convolution or linear layer"
        )
    if len(layer.users) > 1:
        raise GraphError(f"cannot fold {_where(node)}: {_where(layer)} is also read unnormalised")
    if sum(other.target == layer.target for other in node.graph.nodes if other.op == "call_module") > 1:
        raise GraphError(f"cannot fold {_where(node)}: {_where(layer)} is called more than once")


def _folded(layer: nn.Module | None, statistics: BatchNormStatistics) -> nn.Module:
    """A copy of `layer` with the BN's scale and shift in its weight and bias (Jacob et al., 2018, eq. 14)."""
    assert isinstance(layer, tuple(QUANTIZED))
    mean, variance, eps, weight, bias = statistics
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    twin = copy.copy(layer)
    twin._parameters = dict(layer._parameters)
    with torch.no_grad():
        fused = fuse(layer.weight, layer.bias, mean, variance, eps, weight, bias)
    twin.weight, twin.bias = (nn.Parameter(p.detach(), requires_grad=False) for p in fused)
    return twin


def check_supported(traced: fx.GraphModule) -> None:
    """Refuse what would silently stay in full precision or share one quantizer between two places.

    Raises:
        GraphError: Naming the module and the reason.
    """
    seen: set[str] = set()
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONAL_LAYERS:
            raise GraphError(
                f"{_where(node)} computes its weight on the fly; only layer modules are quantized"
            )
        module = module_of(node)
        if module is None or not any(p.ndim > 1 for p in module.parameters()):
            continue
        if float_type(module) is None:
            kinds = ", ".join(layer.__name__ for layer in QUANTIZED)
            raise GraphError(
                f"{_where(node)} holds a weight but is none of {kinds}; it cannot be quantized yet"
            )
        if str(node.target) in seen:
            raise GraphError(f"{_where(node)} is called more than once; shared layers are not supported yet")
        seen.add(str(node.target))


def _check_same(expected: Any, result: Any) -> None:
    """Refuse a graph that computes something else than the model on the example."""
    if not isinstance(expected, Tensor):
        raise GraphError(f"the model returns {type(expected).__name__}; it must return one tensor")
    difference = float((expected - result).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()) + 1e-6:
        raise GraphError(
            f"the traced graph differs from the model by {difference:.3g}: its forward depends on more than its"
            " input, such as the batch size, or the weights are not finite"
        )


def _where(node: fx.Node) -> str:
    """Where a node comes from, for messages: "'layer1.0.bn1' (BatchNorm2d)" or "add in 'layer1.0'"."""
    module = module_of(node)
    if module is not None:
        return f"'{node.target}' ({type(module).__name__})"
    return f"{node.name} in '{owner(node) or 'the model'}'"


def owner(node: fx.Node) -> str:
    """Path of the innermost module whose forward holds the node; "" for the model itself."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    if node.op == "call_module" and stack and stack[-1] == node.target:
        stack.pop()
    return stack[-1] if stack else ""
