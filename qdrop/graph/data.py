"""A captured graph as plain data, and back: what a file needs to rebuild a network without its source code.

    {"inputs": {"dict": [["x", {"shape": [2, 3, 224, 224], "dtype": "float32"}]]},
     "nodes": [{"name": "x", "op": "placeholder", "target": "x"},
               {"name": "conv1_weight", "op": "get_attr", "target": "conv1.weight"},
               {"name": "conv2d", "op": "call_function", "target": "aten.conv2d.default", "args": [{"node": "x"}, ...]},
               ..., {"name": "output", "op": "output", "target": "output", "args": [{"node": "linear"}]}]}

Quantizers are not in it: the plan says where they are. Arguments are JSON values; an array is a tuple, and an object
with one key is what JSON has no word for: {"node": name}, {"list": [...]}, {"dict": [[key, value], ...]},
{"torch": "float32"} (a type of numbers), {"float": "inf"}.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdrop.errors import QdropError, first_line
from qdrop.graph.captured import CapturedGraph
from qdrop.graph.inputs import describe, zeros
from qdrop.graph.ops import constant, name_of, operator_named, where
from qdrop.graph.shapes import infer_rows, infer_shapes
from qdrop.quantization.names import identifier, module_path, node_name

LARGEST = 1 << 31
"""What no number in a network reaches, but the end of a slice that takes everything."""


class GraphDataError(QdropError, ValueError):
    """A graph that cannot be written as plain data, or data that is no such graph; says what is in the way."""


def graph_to_data(graph: fx.GraphModule) -> dict[str, Any]:
    """A captured graph, quantized or not yet, as plain data for JSON.

    Args:
        graph: What :func:`qdrop.graph.capture.capture` returned, or `quantize_graph`.

    Raises:
        GraphDataError: If it uses an operator that a file may not hold; names the node.
    """
    nodes: list[dict[str, Any]] = []
    for node in graph.graph.nodes:
        if node.op == "call_module":  # a quantizer
            continue
        try:
            nodes.append(_node_to_data(node))
        except ValueError as error:
            raise GraphDataError(f"the network cannot be saved: {where(node)}: {error}") from error
    return {"inputs": describe(graph.meta["example"]), "nodes": nodes}


def constants(data: Mapping[str, Any]) -> list[str]:
    """Paths of the tensors that a graph reads, weights included."""
    return [node["target"] for node in data["nodes"] if node["op"] == "get_attr"]


def constants_of(graph: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that a graph reads, by path."""
    return {str(node.target): constant(node) for node in graph.graph.nodes if node.op == "get_attr"}


def graph_from_data(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The graph that :func:`graph_to_data` wrote, without quantizers, in evaluation mode.

    Args:
        data: Plain data. Nothing in it is executed but the operators of :mod:`qdrop.graph.ops`.
        tensors: What its nodes read, by path. They are used, not copied.

    Raises:
        GraphDataError: If the data is no such graph or the tensors do not fit; says where.
    """
    try:
        model = _build(data, tensors)
        model.meta["example"] = zeros(data["inputs"])
        infer_shapes(model, model.meta["example"])
        infer_rows(model, model.meta["example"])
    except GraphDataError:
        raise
    except Exception as error:  # whatever torch says of arguments that do not fit each other
        raise GraphDataError(f"the network cannot be rebuilt: {type(error).__name__}: {first_line(error)}") from error
    return model


def _build(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    paths = constants(data)
    if extra := sorted(set(tensors) - set(paths)):
        raise GraphDataError(f"nothing reads the tensor '{extra[0]}'")
    root = {module_path(path): _constant(tensors[path]) for path in paths}
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for node in data["nodes"]:
        nodes[node["name"]] = _node_from_data(node, graph, nodes)
    graph.lint()
    if not any(node.op == "output" and node.all_input_nodes for node in graph.nodes):
        raise GraphDataError("the network has no output")
    return CapturedGraph(root, graph).eval()


def _constant(value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=False) if value.is_floating_point() else value


def _node_to_data(node: fx.Node) -> dict[str, Any]:
    target = node.target if isinstance(node.target, str) else name_of(node.target)
    if node.op == "call_function":
        operator_named(target)
    data: dict[str, Any] = {"name": node.name, "op": node.op, "target": target}
    if node.args:
        data["args"] = [_encode(value) for value in node.args]
    if node.kwargs:
        data["kwargs"] = {key: _encode(value) for key, value in node.kwargs.items()}
    return data


def _node_from_data(data: Mapping[str, Any], graph: fx.Graph, nodes: Mapping[str, fx.Node]) -> fx.Node:
    """The node, checked: torch.fx writes Python source from names, targets and keywords."""
    name, op, target = node_name(data["name"]), data["op"], data["target"]
    args = tuple(_decode(value, nodes) for value in data.get("args", ()))
    kwargs = {identifier(key): _decode(value, nodes) for key, value in data.get("kwargs", {}).items()}
    match op:
        case "placeholder":
            node_name(target)
        case "get_attr":
            module_path(target)
        case "call_function":
            target = operator_named(target)
        case "output":
            if target != "output":
                raise GraphDataError(f"the output is called {target!r}; expected 'output'")
        case _:
            raise GraphDataError(f"the operation is '{op}'; expected placeholder, get_attr, call_function or output")
    node = graph.create_node(op, target, args, kwargs, name=name)
    if node.name != name:
        raise GraphDataError(f"the node name '{name}' is taken or reserved")
    return node


def _encode(value: Any) -> Any:
    match value:
        case fx.Node():
            while value.op == "call_module":
                value = value.all_input_nodes[0]
            return {"node": value.name}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case tuple():
            return [_encode(item) for item in value]
        case list():
            return {"list": [_encode(item) for item in value]}
        case dict():
            return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
        case torch.dtype():
            return {"torch": str(value).removeprefix("torch.")}
    raise GraphDataError(f"an argument is a {type(value).__name__} ({value}), which a file cannot hold")


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    match value:
        case int() if abs(value) >= LARGEST and value != sys.maxsize:
            raise GraphDataError(f"an argument is {value:.3g}; expected less than {LARGEST}")
        case None | bool() | int() | float() | str():
            return value
        case list():
            return tuple(_decode(item, nodes) for item in value)
        case {"node": str(name), **rest} if not rest:
            return nodes[name]
        case {"float": str(text), **rest} if not rest:
            return float(text)
        case {"list": list(items), **rest} if not rest:
            return [_decode(item, nodes) for item in items]
        case {"dict": list(pairs), **rest} if not rest:
            return {_decode(key, nodes): _decode(item, nodes) for key, item in pairs}
        case {"torch": str(name), **rest} if not rest:
            if isinstance(found := getattr(torch, name, None), torch.dtype):
                return found
    raise GraphDataError(f"the argument {value!r} is none that a file may hold")
