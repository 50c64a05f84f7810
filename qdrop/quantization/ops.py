"""What a graph node does, as far as quantization cares."""

import operator
from enum import Enum, auto

import torch
import torch.nn.functional as F
from torch import fx, nn

from qdrop.quantization.quantized_module import float_type


class Role(Enum):
    """What a node is to the plan."""

    WEIGHTED = auto()
    """A layer with a weight that is quantized."""
    ACTIVATION = auto()
    """A pointwise activation function; fused with the node before it where that has no other reader."""
    ADD = auto()
    """A sum of two activations."""
    ARITHMETIC = auto()
    """A product, difference or quotient of two activations: a new value range."""
    NORM = auto()
    """A normalisation that is computed from the activation, such as LayerNorm."""
    OTHER = auto()
    """Anything that moves, pools or selects values: what was quantized stays near its grid."""


ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Hardshrink, nn.Softsign,
)  # fmt: skip
CLIPPING_MODULES = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
NORM_MODULES = (
    nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm, nn.RMSNorm, nn.Softmax,
)  # fmt: skip

_CLIPPING_NAMES = {"relu", "relu6", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max"}
_ACTIVATION_NAMES = _CLIPPING_NAMES | {
    "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "logsigmoid", "tanh",
    "hardswish", "hardsigmoid", "softplus", "hard_swish", "hard_sigmoid",
}  # fmt: skip
_ADD_NAMES = {"add"}
_ARITHMETIC_NAMES = {"mul", "multiply", "sub", "subtract", "truediv", "div", "divide", "matmul", "bmm"}
_NORM_NAMES = {"layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "normalize"}
_LIBRARIES = {"_operator", "torch", "torch.nn.functional", "torch._C._nn", "math"}
FUNCTIONAL_LAYERS = {F.conv1d, F.conv2d, F.conv3d, F.linear, F.conv_transpose2d, torch.conv2d}
"""Functions with a weight argument: a layer whose weight the plan would not see."""


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


def role(node: fx.Node, activations: set[fx.Node]) -> Role:
    """What `node` does.

    Args:
        node: A node of a traced graph.
        activations: Nodes that depend on the network's input; arithmetic with a constant is not new data.
    """
    module = module_of(node)
    if module is not None:
        if float_type(module) is not None:
            return Role.WEIGHTED
        if isinstance(module, ACTIVATION_MODULES):
            return Role.ACTIVATION
        return Role.NORM if isinstance(module, NORM_MODULES) else Role.OTHER
    name = operation(node)
    if name in _ACTIVATION_NAMES:
        return Role.ACTIVATION
    if name in _NORM_NAMES:
        return Role.NORM
    if len([n for n in node.all_input_nodes if n in activations]) > 1 or name in {"bmm", "matmul"}:
        if name in _ADD_NAMES:
            return Role.ADD
        if name in _ARITHMETIC_NAMES:
            return Role.ARITHMETIC
    return Role.OTHER


def clips(node: fx.Node) -> bool:
    """Whether an activation function only clips, so that values on a grid stay on it."""
    return isinstance(module_of(node), CLIPPING_MODULES) or operation(node) in _CLIPPING_NAMES


def out_of_place(node: fx.Node) -> None:
    """Turn an in-place function or method (`relu_`, `+=`, `inplace=True`) into its out-of-place twin."""
    if node.op not in ("call_function", "call_method"):
        return
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    name = operation(node)
    if node.op == "call_method" and name.endswith("_") and hasattr(torch.Tensor, name[:-1]):
        node.target = name[:-1]
    elif node.op == "call_function" and name in _INPLACE_OPERATORS:
        node.target = _INPLACE_OPERATORS[name]
    elif node.op == "call_function" and name.endswith("_") and hasattr(torch, name[:-1]):
        node.target = getattr(torch, name[:-1])


_INPLACE_OPERATORS = {
    "iadd": operator.add, "isub": operator.sub, "imul": operator.mul, "itruediv": operator.truediv,
}  # fmt: skip
