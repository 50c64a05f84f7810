"""From a model to one clean graph: traced with `torch.fx`, nothing in place, BN folded, shapes known."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdrop.quantization.ops import GraphError, module_of, multiplies_weight, where
from qdrop.quantization.quantized_module import QUANTIZED, float_type
from qdrop.quantization.shapes import record_shapes
from qdrop.quantization.simplify import simplify
from qdrop.quantization.state import evaluating
from qdrop.quantization.traced_graph import TracedGraph

TOLERANCE = 1e-3
"""Largest difference of the folded graph's output from the model's, relative to its largest value."""


class _Tracer(fx.Tracer):
    """Traces through everything but torch's own layers as they are; says which module it could not follow."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, tuple(QUANTIZED)) or type(m).__module__.startswith("torch.nn.utils."):
            return float_type(m) is not None  # else what it really does with its weight
        return super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """One tensor; whatever else `forward` takes, such as a mask, keeps its default."""
        name = list(inspect.signature(root_fn).parameters)[1]
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

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
    _check_weights(model)
    with evaluating(model):
        traced = _traced(model)
        with torch.inference_mode():
            expected = model(example)
    simplify(traced)
    traced.graph.lint()
    traced.recompile()
    _check_same(expected, record_shapes(traced, example))
    return traced


def _check_weights(model: nn.Module) -> None:
    """Refuse weights that are no floating-point numbers: a layer that holds them would be taken for one without any."""
    for name, value in model.state_dict(keep_vars=True).items():
        packed = not isinstance(value, Tensor) and not name.endswith("_extra_state")
        integers = isinstance(value, nn.Parameter) and value.ndim > 1 and not value.is_floating_point()
        if packed or integers or (isinstance(value, Tensor) and value.is_quantized):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise GraphError(
                f"'{name}' is {kind}: the model is quantized already, by torch.ao.quantization or another library;"
                " quantize the one it was made from, with weights in torch.float32"
            )


def _traced(model: nn.Module) -> fx.GraphModule:
    """The graph as `torch.fx` finds it; tensors made in `forward`, which it leaves in the model, are only in there."""
    before = set(vars(model))
    try:
        graph = _Tracer().trace(model)
        return TracedGraph(model, graph, class_name=type(model).__name__)
    except GraphError:
        raise
    except Exception as error:
        raise GraphError(f"cannot trace {type(model).__name__}: {error}") from error
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)


def check_supported(traced: fx.GraphModule) -> None:
    """Refuse what would silently stay in full precision or share one quantizer between two places.

    Raises:
        GraphError: Naming the module and the reason.
    """
    seen: set[str] = set()
    for node in traced.graph.nodes:
        if multiplies_weight(node):
            raise GraphError(f"{where(node)} takes a weight as an argument; only layer modules are quantized")
        module = module_of(node)
        if module is None or not any(p.ndim > 1 for p in module.parameters()):
            continue
        if float_type(module) is None:
            kinds = ", ".join(layer.__name__ for layer in QUANTIZED)
            raise GraphError(f"{where(node)} holds a weight but is none of {kinds}; it cannot be quantized yet")
        if str(node.target) in seen:
            raise GraphError(f"{where(node)} is called more than once; shared layers are not supported yet")
        seen.add(str(node.target))


def _check_same(expected: Any, result: Any) -> None:
    """Refuse a graph that computes something else than the model on the example."""
    if not isinstance(expected, Tensor):
        raise GraphError(f"the model returns {type(expected).__name__}; it must return one tensor")
    difference = float((expected - result).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()) + 1e-6:
        raise GraphError(
            f"the traced graph differs from the model by {difference:.3g}: its forward depends on more than"
            " its input, such as the batch size, or works in place on a view, or the weights are not finite"
        )
