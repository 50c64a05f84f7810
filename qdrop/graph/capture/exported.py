"""What `torch.export` makes of a network, as a graph of its own: plain inputs and outputs, the model's own tensors."""

import linecache
import logging
import operator
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from qdrop.errors import first_line
from qdrop.graph.capture.products import products
from qdrop.graph.captured import CapturedGraph
from qdrop.graph.inputs import Arguments
from qdrop.graph.ops import GraphError
from qdrop.quantization.state import holding


def exported(model: nn.Module, given: Arguments, axes: tuple[int, ...]) -> CapturedGraph:
    """A network as a graph of ATen operators, out of place, attention in its products.

    Args:
        model: The network, in evaluation mode.
        given: Its arguments, two rows of each.
        axes: Axes of images that may have any length; of other inputs the first alone.

    Raises:
        GraphError: If it cannot be captured; says where in the model's own code.
    """
    return _owned(_program(model, given, axes))


def _program(model: nn.Module, given: Arguments, axes: tuple[int, ...]) -> torch.export.ExportedProgram:
    def free(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        image = value.ndim == 4 and value.is_floating_point()
        return {axis: Dim.AUTO for axis in axes if axis < value.ndim and (axis == 0 or image)}

    shapes = pytree.tree_map(free, dict(given))
    try:
        with _quiet():
            program = torch.export.export(model, (), dict(given), dynamic_shapes=shapes, strict=False)
            return program.run_decompositions(products(program))
    except Exception as error:  # a foreign network may raise anything
        raise GraphError(
            f"cannot capture {type(model).__name__}: {first_line(error)}{_line_of_the_model(error)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside: torch's exporter prints neither graphs nor advice to its developers; its errors say enough."""
    manager = logging.root.manager
    with warnings.catch_warnings(), holding([manager], "disable", logging.CRITICAL), StringIO() as sink:
        warnings.simplefilter("ignore")
        with redirect_stderr(sink), redirect_stdout(sink):
            yield


def _owned(program: torch.export.ExportedProgram) -> CapturedGraph:
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
