"""From a network to one clean graph of ATen operators, by `torch.export`."""

import linecache
import operator
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import SymInt, Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from qdrop.errors import first_line
from qdrop.graph.captured import CapturedGraph
from qdrop.graph.inputs import Arguments, Example, arguments, rows
from qdrop.graph.ops import GraphError, inputs, operation
from qdrop.graph.passes import simplify
from qdrop.graph.shapes import record_shapes
from qdrop.quantization.state import evaluating

TOLERANCE = 1e-3
"""Largest difference of the captured graph's output from the model's, relative to its largest value."""


def capture(model: nn.Module, example: Example) -> fx.GraphModule:
    """Capture `model` in evaluation mode as a graph that is safe to cut up and quantize.

    The model is left as it was, its parameters are shared; folded ones are new.

    Args:
        model: Any module that `torch.export` can follow.
        example: Some inputs, `[N, ...]` each, N of any size: a tensor, or what a data loader gives, of which
            :func:`qdrop.graph.inputs.arguments` takes what `forward` does. The graph is checked against the model on
            them, with two rows and with three.

    Returns:
        The graph. It takes what the model takes and gives what it gives, in a batch of any size, and has the form that
        :func:`qdrop.graph.passes.simplify` describes. In each node's `meta` are the `shapes` of its value, whether it
        has a row for each image (`rows`), and the modules it is in (`nn_module_stack`).

    Raises:
        GraphError: If the model cannot be captured, or the graph computes something else.
    """
    _check_weights(model)
    given = arguments(model, example)
    two, three = rows(given, [0, 1]), rows(given, [0, 1, 0])
    with evaluating(model), torch.no_grad(), _plain_attention():
        of_two = model(**two)  # what it cannot run on is told in its own words
        graph = _exported(model, two)
        expected = of_two, _of_three(model, three)
    graph.meta["example"] = two
    record_shapes(graph, three)
    by_three = {node: node.meta["shapes"] for node in graph.graph.nodes}
    results = record_shapes(graph, two), graph(**three)
    for node, shapes in by_three.items():
        node.meta["rows"] = [s[:1] for s in shapes] == [(3,)] and [s[:1] for s in node.meta["shapes"]] == [(2,)]
    for ours, theirs in zip(results, expected, strict=True):
        _check_same(ours, theirs)
    return graph


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


def _of_three(model: nn.Module, given: Arguments) -> Any:
    """What the model gives for three rows, where it gave something for two."""
    try:
        return model(**given)
    except Exception as error:  # a foreign network may raise anything
        raise GraphError(
            f"the network works in batches of 2 alone: {first_line(error)}; write sizes as x.shape[0], or -1 in a"
            " reshape"
        ) from error


def _exported(model: nn.Module, given: Arguments) -> fx.GraphModule:
    """The graph for images of any size where that can be; `meta["any_size"]` says whether it is."""
    graph = _simplified(model, given, (0,))
    graph.meta["any_size"] = _takes_other_sizes(graph, model, given)
    if not graph.meta["any_size"] and any(operation(node).startswith("upsample") for node in graph.graph.nodes):
        # One value enlarged to the size of another, as in a feature pyramid: that size is a number in the graph.
        try:
            free = _simplified(model, given, (0, 2, 3))
        except GraphError:
            return graph
        free.meta["any_size"] = _takes_other_sizes(free, model, given)
        return free if free.meta["any_size"] else graph
    return graph


def _simplified(model: nn.Module, given: Arguments, axes: tuple[int, ...]) -> fx.GraphModule:
    """The graph, in which these axes of the inputs may have any length."""
    graph = _owned(_program(model, given, axes))
    for node in inputs(graph.graph):
        value = node.meta["val"]
        if isinstance(value, Tensor) and value.ndim and not isinstance(value.shape[0], SymInt):
            raise GraphError(
                f"the network works in batches of {value.shape[0]} alone: its forward fixes the number of rows of"
                f" '{node.name}'; write sizes as x.shape[0], or -1 in a reshape"
            )
    simplify(graph)
    return graph


def _takes_other_sizes(graph: fx.GraphModule, model: nn.Module, given: Arguments) -> bool:
    """Whether the graph gives what the model does for images half as large again."""

    def larger(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()):
            return value
        height, width = value.shape[2:]
        return value.repeat(1, 1, 2, 2)[:, :, : height * 3 // 2, : width * 3 // 2]

    images = {name: pytree.tree_map(larger, value) for name, value in given.items()}
    if all(a is b for a, b in zip(pytree.tree_leaves(images), pytree.tree_leaves(given), strict=True)):
        return False
    try:
        _check_same(graph(**images), model(**images))
    except Exception:  # whatever an operator says of shapes that do not fit
        return False
    return True


def _program(model: nn.Module, given: Arguments, axes: tuple[int, ...]) -> torch.export.ExportedProgram:
    def free(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        image = value.ndim == 4 and value.is_floating_point()
        return {axis: Dim.AUTO for axis in axes if axis < value.ndim and (axis == 0 or image)}

    shapes = pytree.tree_map(free, dict(given))
    try:
        program = torch.export.export(model, (), dict(given), dynamic_shapes=shapes, strict=False)
        return program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: attention})
    except Exception as error:  # a foreign network may raise anything
        raise GraphError(
            f"cannot capture {type(model).__name__}: {first_line(error)}{_line_of_the_model(error)}"
        ) from error


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`softmax(query @ key^T * scale + mask) @ value` (Vaswani et al., 2017, eq. 1), in products that are quantized.

    Args:
        query: `[..., L, E]`.
        key: `[..., S, E]`.
        value: `[..., S, V]`.
        attn_mask: Added to the scores `[..., L, S]`, or, of booleans, where to look.
        dropout_p: Not used: a network is captured in evaluation mode.
        is_causal: Whether each of L sees only those of S before it.
        scale: Of the scores; None: 1/sqrt(E).
        enable_gqa: Whether several queries share a key and a value, along axis -3.

    Returns:
        `[..., L, V]`.
    """
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -1e9)
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Inside: `nn.MultiheadAttention` computes by operators, not in one of its own."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _owned(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program as a graph with constants of its own, on the model's memory, that takes and gives nests as they are.

    Equal tensors of several names are one node.
    """
    found = program.module(check_guards=False)
    root: dict[str, Any] = {}
    copies: dict[fx.Node, Any] = {}
    by_tensor: dict[tuple[Any, ...], fx.Node] = {}
    graph = fx.Graph()
    given = [node for node in found.graph.nodes if node.op == "placeholder"]
    _copy_inputs(graph, found._in_spec, given, copies)
    for node in found.graph.nodes:
        if node.op == "get_attr":
            value = _attribute(found, str(node.target))
            if isinstance(value, fx.GraphModule):
                raise GraphError(f"the network branches on its data ('{node.target}'), which is not supported")
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (node,)
            if key not in by_tensor:
                root[str(node.target)] = _own(value)
                by_tensor[key] = graph.node_copy(node)
                by_tensor[key].meta["val"] = root[str(node.target)]
            copies[node] = by_tensor[key]
        elif node.op == "call_module":
            continue  # the guard on shapes, of older versions
        elif node.op == "output":
            flat = [copies.get(v, v) if isinstance(v, fx.Node) else v for v in node.args[0]]
            graph.output(_plain(pytree.tree_unflatten(flat, cast(Any, found._out_spec))))
        elif node.op != "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code()
    return CapturedGraph(root, graph).eval()


def _copy_inputs(graph: fx.Graph, spec: Any, given: list[fx.Node], copies: dict[fx.Node, Any]) -> None:
    """A placeholder for each argument; members of a nest are taken from it by key."""
    nest = pytree.tree_unflatten(given, spec)[1]
    placeholders = [(name, value, graph.placeholder(name)) for name, value in nest.items()]
    for _, value, node in placeholders:
        _take_members(graph, value, node, copies)


def _take_members(graph: fx.Graph, value: Any, node: fx.Node, copies: dict[fx.Node, Any]) -> None:
    if isinstance(value, fx.Node):
        node.meta = dict(value.meta)
        copies[value] = node
        return
    node.meta["nest"] = True
    members = value.items() if isinstance(value, Mapping) else enumerate(value) if value is not None else ()
    for key, member in members:
        _take_members(graph, member, graph.call_function(operator.getitem, (node, key)), copies)


def _plain(value: Any) -> Any:
    """A nest in the containers of Python: a dict for any mapping, a tuple for a named one."""
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value] if isinstance(value, list) else tuple(_plain(v) for v in value)
    return value


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _own(value: Tensor) -> Tensor:
    own = value.detach()
    return nn.Parameter(own, requires_grad=False) if own.is_floating_point() else own


def _check_same(ours: Any, theirs: Any) -> None:
    """Refuse a graph that computes something else than the model on the example."""
    pairs = list(zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True))
    if not any(isinstance(value, Tensor) for value, _ in pairs):
        raise GraphError("the model returns no tensor")
    for found, expected in pairs:
        if isinstance(expected, Tensor) and expected.numel():
            difference = float((expected.double() - found.double()).abs().max())
            if not difference <= TOLERANCE * float(expected.double().abs().max()) + 1e-6:
                raise GraphError(
                    f"the captured graph differs from the model by {difference:.3g}: its forward depends on more than"
                    " its input, such as random numbers or what earlier calls left, or the weights are not finite"
                )


def _line_of_the_model(error: BaseException) -> str:
    """Where in the model's own code an error arose: ", at FILE:LINE: CODE"; "" if that is not known."""
    torch_folder = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(torch_folder)]
    ours = str(Path(__file__).parent)
    of_model = [f for f in frames if not f.filename.startswith(ours)]
    if not of_model:
        return ""
    last = of_model[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return f"; at {Path(last.filename).name}:{last.lineno}: {line}"
