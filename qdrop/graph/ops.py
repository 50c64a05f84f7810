"""The table of operators: what each one is to quantization. A file may name these and no others.

Placement, the check of a file and the count of multiply-accumulates read this table. A new operator is one word in it
(docs/extending.md).
"""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from qdrop.errors import QdropError


class GraphError(QdropError, ValueError):
    """A network that cannot be captured or planned; names the module and the reason."""


class Role(Enum):
    """What an operator is to quantization."""

    PRODUCT = auto()
    """Sums of products of two operands: convolutions, linear layers, matrix products. Operands are quantized."""
    ADD = auto()
    """A sum of two activations, or of the slices of one: a new range of values."""
    ARITHMETIC = auto()
    """A product, difference or quotient of two activations, element by element: a new range of values."""
    FUNCTION = auto()
    """A function of each element that bends: a new range, fused with what produced its input where it can be."""
    CLIP = auto()
    """A function of each element that only clips or scales: values on a grid stay on one."""
    NORM = auto()
    """A normalisation that is computed from the activation, such as LayerNorm or softmax: a new range of values."""
    SHAPE = auto()
    """The same values in another shape or order."""
    SELECT = auto()
    """Some of the values, or some more than once, joined or padded: on a grid if the input is."""
    MIX = auto()
    """Averages of values, such as pooling: near the grid of the input, not on it."""
    OPAQUE = auto()
    """Stays in full precision with whatever weights it has, such as LSTM: a new range of values."""
    SIZE = auto()
    """A size, or arithmetic on sizes."""
    CREATE = auto()
    """A tensor made of sizes and numbers alone."""


@dataclass(frozen=True)
class Operator:
    """A row of the table."""

    role: Role
    operands: tuple[int, int] = (0, 1)
    """Of a product: positions of its two operands among the arguments."""
    channels: int = 0
    """Of a product: axis of the second operand along which output channels lie."""


def _rows(role: Role, names: str, **fields: Any) -> dict[str, Operator]:
    return {f"aten.{name}": Operator(role, **fields) for name in names.split()}


_SIZE_ARITHMETIC = (
    "add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_",
    "not_",
)  # fmt: skip
_SIZE_FUNCTIONS = ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite")

OPERATORS: dict[str, Operator] = {
    **_rows(Role.PRODUCT, "conv1d conv2d conv3d linear"),
    **_rows(Role.PRODUCT, "conv_transpose1d conv_transpose2d conv_transpose3d", channels=1),
    **_rows(Role.PRODUCT, "matmul mm bmm mv", channels=-1),
    **_rows(Role.PRODUCT, "addmm baddbmm", operands=(1, 2), channels=-1),
    **_rows(Role.ADD, "add sum"),
    **_rows(
        Role.ARITHMETIC,
        "sub rsub mul div remainder fmod floor_divide maximum minimum addcmul addcdiv lerp outer dot atan2",
    ),
    **_rows(
        Role.FUNCTION,
        "leaky_relu prelu _prelu_kernel elu celu selu gelu silu mish sigmoid log_sigmoid tanh hardswish "
        "hardsigmoid softplus softsign hardshrink softshrink glu exp expm1 log log1p log2 sqrt rsqrt pow square "
        "reciprocal sin cos erf abs sign floor ceil round trunc frac logit sinc threshold",
    ),
    **_rows(Role.CLIP, "relu relu6 hardtanh clamp clamp_min clamp_max neg"),
    **_rows(
        Role.NORM,
        "layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm batch_norm "
        "_native_batch_norm_legit _native_batch_norm_legit_no_training softmax _softmax log_softmax _log_softmax "
        "norm linalg_vector_norm var var_mean std std_mean cumsum cumprod logsumexp cosine_similarity "
        "local_response_norm prod _euclidean_dist cdist",
    ),
    **_rows(
        Role.SHAPE,
        "reshape view _unsafe_view view_as reshape_as permute transpose t movedim flatten unflatten squeeze "
        "unsqueeze contiguous clone pixel_shuffle pixel_unshuffle channel_shuffle roll flip rot90 alias detach "
        "numpy_T mT swapaxes _to_copy to",
    ),
    **_rows(
        Role.SELECT,
        "slice select index index_select gather split split_with_sizes chunk unbind tensor_split narrow cat "
        "concat stack expand expand_as repeat repeat_interleave tile pad constant_pad_nd reflection_pad1d "
        "reflection_pad2d replication_pad1d replication_pad2d max_pool1d max_pool2d max_pool3d "
        "max_pool2d_with_indices max_unpool2d adaptive_max_pool1d adaptive_max_pool2d amax amin max min where "
        "masked_fill upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d tril triu "
        "diagonal unfold im2col sort topk masked_select scatter index_put slice_scatter select_scatter copy fill "
        "meshgrid broadcast_tensors as_strided argmax argmin eq ne lt le gt ge logical_and "
        "logical_or logical_not bitwise_and bitwise_or bitwise_not isnan isfinite any all one_hot",
    ),
    **_rows(
        Role.MIX,
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "_adaptive_avg_pool2d mean upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d col2im median lp_pool2d",
    ),
    **_rows(
        Role.OPAQUE,
        "lstm gru rnn_tanh rnn_relu embedding bilinear fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 "
        "view_as_real view_as_complex complex real imag conv_tbc",
    ),
    **_rows(Role.SIZE, "sym_size sym_numel sym_stride item _local_scalar_dense"),
    **_rows(
        Role.CREATE,
        "full zeros ones arange empty eye linspace scalar_tensor full_like zeros_like ones_like empty_like "
        "new_full new_zeros new_ones new_empty",
    ),
    **{f"operator.{name}": Operator(Role.SIZE) for name in _SIZE_ARITHMETIC},
    "operator.getitem": Operator(Role.SELECT),
    **{f"torch.{name}": Operator(Role.SIZE) for name in _SIZE_FUNCTIONS},
    **{f"math.{name}": Operator(Role.SIZE) for name in ("ceil", "floor", "trunc")},
}
"""Operators by name, whatever their overload; those that write into an argument are none of them."""

UNKNOWN = Operator(Role.OPAQUE)
"""What is in no row: it stays in full precision, and a file cannot hold it."""


def name_of(target: Any) -> str:
    """Full name of what a node calls: `aten.conv2d.default`, `operator.getitem`, `torch.sym_max`."""
    if isinstance(target, OpOverload):
        return str(target)
    module = getattr(target, "__module__", None) or "torch"
    return f"{module.removeprefix('_')}.{getattr(target, '__name__', target)}"


def operator_named(name: str) -> Any:
    """What :func:`name_of` named.

    Raises:
        ValueError: If the table has no such operator, or it writes into an argument.
    """
    library, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    found = None
    if f"{library}.{packet}" in OPERATORS:
        if library == "aten":
            found = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
        elif not overload:
            found = getattr({"operator": operator, "math": math, "torch": torch}[library], packet, None)
    if found is None or (isinstance(found, OpOverload) and found._schema.is_mutable):
        raise ValueError(f"'{name}' is no operator of the table in qdrop/graph/ops.py")
    return found


def is_listed(node: fx.Node) -> bool:
    """Whether the table has a row for what a node calls."""
    return node.op != "call_function" or _row_name(node) in OPERATORS


def row(node: fx.Node) -> Operator:
    """The row of what a node calls; :data:`UNKNOWN` if it has none."""
    return OPERATORS.get(_row_name(node), UNKNOWN)


def operation(node: fx.Node) -> str:
    """Short name of what a node calls, `conv2d`; "" if it calls no operator."""
    return _row_name(node).rpartition(".")[2]


def _row_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return ""
    target = node.target
    return f"{target.namespace}.{target._opname}" if isinstance(target, OpOverload) else name_of(target)


def holds_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a tensor or several, rather than a size or nothing."""
    return bool(node.meta.get("shapes"))


def operands(node: fx.Node) -> list[fx.Node]:
    """Nodes among the arguments of `node`; one that is given twice counts twice."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def activations(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value comes from the values, not only the sizes, of the network's inputs."""
    found = set(inputs(graph))
    for node in graph.nodes:
        computed = node.op in ("call_function", "call_module") and row(node).role is not Role.CREATE
        if computed and holds_tensor(node) and found.intersection(node.all_input_nodes):
            found.add(node)
    return found


_SCALING = {"add", "sub", "rsub", "mul", "div"}


def role(node: fx.Node, activations: set[fx.Node]) -> Role:
    """What `node` is: its row's role, or what arithmetic with a constant comes to.

    Args:
        node: A node of a captured graph.
        activations: What :func:`activations` returned.
    """
    listed = row(node).role
    if operation(node) == "getitem" and node.args[0].meta.get("tuple"):  # type: ignore[union-attr]
        return role(node.args[0], activations)  # type: ignore[arg-type]  # one of several tensors is what all are
    if node.op != "call_function" or node not in activations:
        return listed if node.op == "call_function" else Role.SELECT
    if listed not in (Role.ADD, Role.ARITHMETIC) or operation(node) == "sum":
        return listed
    inputs = operands(node)
    if len([n for n in inputs if n in activations]) > 1:
        return listed
    constants = [n for n in inputs if n not in activations and holds_tensor(n)]
    numbers = all(not any(n.meta["shapes"][0]) for n in constants)  # no axes: a number in a tensor
    divides_by_it = operation(node) == "div" and inputs and node.args[0] not in activations
    scales = operation(node) in _SCALING and numbers and not divides_by_it
    return Role.CLIP if scales else Role.FUNCTION


def multiplied(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two operands of a product."""
    first, second = (node.args[position] for position in row(node).operands)
    assert isinstance(first, fx.Node) and isinstance(second, fx.Node)
    return first, second


def constant(node: fx.Node) -> Tensor:
    """The tensor that a `get_attr` node reads."""
    assert node.graph.owning_module is not None
    value = getattr(*place(node.graph.owning_module, str(node.target)))
    assert isinstance(value, Tensor)
    return value


def place(model: torch.nn.Module, path: str) -> tuple[torch.nn.Module, str]:
    """The module that holds what lies at a dotted path, and its name in there: `getattr(*place(model, path))`."""
    holder, _, name = path.rpartition(".")
    return model.get_submodule(holder), name


def stack(node: fx.Node) -> list[tuple[str, str]]:
    """Paths and class names of the modules whose `forward` a node is in, outermost first."""
    found = node.meta.get("nn_module_stack", {}).values()
    return [(path.partition("@")[0], str(kind)) for path, kind in found if not path.startswith("_empty")]


def owner(node: fx.Node) -> str:
    """Path of the innermost module whose `forward` holds the node; "" for the model itself."""
    modules = stack(node)
    return modules[-1][0] if modules else ""


def where(node: fx.Node) -> str:
    """Where a node comes from, for messages: "conv2d in 'layer1.0.conv1'"."""
    return f"{operation(node) or node.name} in '{owner(node) or 'the model'}'"


def inputs(graph: fx.Graph) -> list[fx.Node]:
    """The tensors a network takes, in order: its placeholders, or the members of those that are nests."""
    return list(_leaves(graph.find_nodes(op="placeholder")))


def _leaves(nodes: Iterable[fx.Node]) -> Iterable[fx.Node]:
    for node in nodes:
        members = [user for user in node.users if user.target is operator.getitem]
        if node.meta.get("nest"):
            yield from _leaves(members)
        else:
            yield node
