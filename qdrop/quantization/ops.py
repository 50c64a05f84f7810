"""What a graph node does and where it comes from, as far as quantization cares."""

import operator
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qdrop.errors import QdropError
from qdrop.quantization.quantized_module import QUANTIZED, float_type


class GraphError(QdropError, ValueError):
    """A model that cannot be traced, folded or planned; names the module and the reason."""


class Role(Enum):
    """What a node is to the plan."""

    WEIGHTED = auto()
    """A layer with a weight that is quantized."""
    ACTIVATION = auto()
    """A pointwise function, such as an activation function or arithmetic with a constant; fused with the node
    before it where that has no other reader."""
    ADD = auto()
    """A sum of two activations, or of the slices of one."""
    ARITHMETIC = auto()
    """A product, difference or quotient of two activations: a new value range."""
    NORM = auto()
    """A normalisation that is computed from the activation, such as LayerNorm, or the norm itself."""
    OTHER = auto()
    """Anything that moves, pools or selects values: what was quantized stays near its grid."""


ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Hardshrink,
    nn.Softsign, nn.GLU,
)  # fmt: skip
MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
CLIPPING_MODULES = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
NORM_MODULES = (
    nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm, nn.RMSNorm, nn.Softmax, nn.Softmax2d,
)  # fmt: skip

_CLIPPING_NAMES = {"relu", "relu6", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max"}
_ACTIVATION_NAMES = _CLIPPING_NAMES | {
    "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "logsigmoid", "tanh",
    "hardswish", "hardsigmoid", "softplus", "softsign", "glu", "exp", "log", "sqrt", "rsqrt", "pow", "square",
    "reciprocal", "sin", "cos",
}  # fmt: skip
_MOVING_NAMES = {
    "permute", "transpose", "movedim", "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze",
    "contiguous",
}  # fmt: skip
_ADD_NAMES = {"add"}
_SUM_NAMES = {"sum"}
_PRODUCT_NAMES = {"matmul", "mm", "bmm", "einsum", "addmm", "tensordot"}
_ATTENTION_NAMES = {"scaled_dot_product_attention", "baddbmm"}
_DIVISION_NAMES = {"truediv", "div", "divide"}
_SCALING_NAMES = _DIVISION_NAMES | {"add", "mul", "multiply", "sub", "subtract"}
_ARITHMETIC_NAMES = _SCALING_NAMES | {"addcmul", "addcdiv"}
_NORM_NAMES = {
    "layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "normalize", "norm", "vector_norm",
    "var", "std",
}  # fmt: skip
_LIBRARIES = {"_operator", "torch", "torch.nn.functional", "torch.functional", "torch._C._nn", "math"}
FUNCTIONAL_LAYERS: dict[Any, type[nn.Module] | None] = {
    F.linear: nn.Linear, F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d,
    F.conv3d: None, F.conv_transpose1d: None, F.conv_transpose2d: None, F.bilinear: None,
    F.multi_head_attention_forward: None,
}  # fmt: skip
"""Functions with a weight argument, and the layer that does the same where plans know one."""


def operation(node: fx.Node) -> str:
    """Plain name of the function or method a node calls (`relu` for `F.relu` and `x.relu()`); else ""."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function" or isinstance(node.target, str):
        return ""
    module = getattr(node.target, "__module__", None) or "torch"
    return str(getattr(node.target, "__name__", "")) if module in _LIBRARIES else ""


def module_of(node: fx.Node) -> nn.Module | None:
    """The module a `call_module` node calls; None for other nodes."""
    if node.op != "call_module" or node.graph.owning_module is None:
        return None
    return node.graph.owning_module.get_submodule(str(node.target))


def holds_tensor(node: fx.Node) -> bool:
    """Whether the node's value is a tensor or several, rather than a size."""
    return node.meta.get("type") is Tensor or node.meta.get("tensor_meta") is not None


def activations(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value comes from the network's input, not only from its size, or from a layer."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        layer = isinstance(module_of(node), tuple(QUANTIZED))
        if node.op == "placeholder" or layer or (holds_tensor(node) and found.intersection(node.all_input_nodes)):
            found.add(node)
    return found


def role(node: fx.Node, activations: set[fx.Node]) -> Role:
    """What `node` does.

    Args:
        node: A node of a traced graph.
        activations: What :func:`activations` returned; arithmetic with anything else is not new data.
    """
    module = module_of(node)
    if module is not None:
        if float_type(module) is not None:
            return Role.WEIGHTED
        if isinstance(module, ACTIVATION_MODULES):
            return Role.ACTIVATION
        return Role.NORM if isinstance(module, NORM_MODULES) else Role.OTHER
    return _role_of_function(node, activations) if node in activations else Role.OTHER


def _role_of_function(node: fx.Node, activations: set[fx.Node]) -> Role:
    name = operation(node)
    if name in _ACTIVATION_NAMES:
        return Role.ACTIVATION
    if name in _NORM_NAMES:
        return Role.NORM
    if name in _SUM_NAMES:
        return Role.ADD
    if name in _PRODUCT_NAMES | _ATTENTION_NAMES:
        return Role.ARITHMETIC
    if name not in _ARITHMETIC_NAMES:
        return Role.OTHER
    if len([n for n in operands(node) if n in activations]) < 2:
        return Role.ACTIVATION
    return Role.ADD if name in _ADD_NAMES else Role.ARITHMETIC


def operands(node: fx.Node) -> list[fx.Node]:
    """Nodes among the arguments of `node`; one that is given twice counts twice."""
    return [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, fx.Node)]


def clips(node: fx.Node) -> bool:
    """Whether a pointwise function only clips or scales, so that values on a grid stay on one."""
    name = operation(node)
    scales = name in _SCALING_NAMES and len([n for n in operands(node) if holds_tensor(n)]) == 1
    if scales and name in _DIVISION_NAMES:
        scales = isinstance(node.args[0], fx.Node)
    return scales or isinstance(module_of(node), CLIPPING_MODULES) or name in _CLIPPING_NAMES


def moves(node: fx.Node) -> bool:
    """Whether a node only gives the same values another shape or order."""
    return isinstance(module_of(node), MOVING_MODULES) or operation(node) in _MOVING_NAMES


def out_of_place(node: fx.Node) -> bool:
    """Turn an in-place function or method (`relu_`, `+=`, `inplace=True`) into its out-of-place twin.

    Returns:
        Whether it works in place; a module that does is left as it is.
    """
    if node.op not in ("call_function", "call_method"):
        return bool(getattr(module_of(node), "inplace", False))
    before = node.target, node.kwargs
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    name = operation(node)
    if node.op == "call_method" and name.endswith("_") and hasattr(torch.Tensor, name[:-1]):
        node.target = name[:-1]
    elif node.op == "call_function" and name in _INPLACE_OPERATORS:
        node.target = _INPLACE_OPERATORS[name]
    elif node.op == "call_function" and name.endswith("_"):
        node.target = getattr(torch, name[:-1], None) or getattr(F, name[:-1], None) or node.target
    return (node.target, node.kwargs) != before


def any_layout(node: fx.Node) -> None:
    """Turn the method `view` into `reshape`, which also takes values that lie channels-last in memory."""
    if node.op != "call_method" or node.kwargs:
        return
    if node.target == "view" and not isinstance(node.args[1], torch.dtype):
        node.target = "reshape"
    elif node.target == "view_as":
        node.target = "reshape_as"


_INPLACE_OPERATORS = {
    "iadd": operator.add, "isub": operator.sub, "imul": operator.mul, "itruediv": operator.truediv,
}  # fmt: skip


def multiplies_weight(node: fx.Node) -> bool:
    """Whether a function takes a weight that no layer holds: a constant of two or more dimensions.

    Moving values, or adding and scaling by a constant, is not that; what an unknown function does is.
    """
    if node.op not in ("call_function", "call_method") or not holds_tensor(node):
        return False
    constants = [n for n in node.all_input_nodes if n.op == "get_attr" and n.meta["tensor_meta"].shape[1:]]
    return node.target in FUNCTIONAL_LAYERS or (bool(constants) and operation(node) in _PRODUCT_NAMES | {""})


def where(node: fx.Node) -> str:
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


def place(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds what lies at a dotted path, and its name in there: `getattr(*place(model, path))`."""
    holder, _, name = path.rpartition(".")
    return model.get_submodule(holder), name
