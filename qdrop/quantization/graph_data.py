"""A traced graph as plain data, and back: what a file needs to rebuild a network without its source code.

    {"input": {"shape": [2, 3, 224, 224], "dtype": "float32"},
     "nodes": [{"name": "x", "op": "placeholder", "target": "x"},
               {"name": "conv1", "op": "call_module", "target": "conv1", "args": [{"node": "x"}]},
               {"name": "relu", "op": "call_function", "target": "torch.nn.functional.relu", "args": [...]}, ...],
     "layers": {"conv1": {"type": "Conv2d", "args": {"in_channels": 3, ...}}, ...}}

Quantizers are not in it: the plan says where they are. Arguments are JSON values; an array is a tuple, and an object
with one key is what JSON has no word for: {"node": name}, {"list": [...]}, {"dict": [[key, value], ...]},
{"slice": [start, stop, step]}, {"torch": "float32"} (a dtype or memory format), {"float": "inf"}, {"ellipsis": true}.
"""

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdrop.errors import QdropError, first_line
from qdrop.quantization.allowed import (
    ATTRIBUTES,
    METHODS,
    function_named,
    layer_named,
    name_of_function,
    name_of_layer,
)
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.names import identifier, module_path, node_name
from qdrop.quantization.ops import module_of
from qdrop.quantization.shapes import TensorMeta, record_shapes
from qdrop.quantization.traced_graph import TracedGraph

LARGEST = 1 << 31
"""What no number in a network reaches, but the end of a slice that takes everything; nor the size of a tensor in it."""


class GraphDataError(QdropError, ValueError):
    """A graph that cannot be written as plain data, or data that is no such graph; says what is in the way."""


def graph_to_data(graph: fx.GraphModule) -> dict[str, Any]:
    """A traced graph, quantized or not yet, as plain data for JSON.

    Args:
        graph: What :func:`qdrop.quantization.graph.trace` returned, or `quantize_graph`.

    Raises:
        GraphDataError: If it uses a function or layer that a file may not hold; names the node.
    """
    nodes: list[dict[str, Any]] = []
    layers: dict[str, Any] = {}
    for node in graph.graph.nodes:
        module = module_of(node)
        if isinstance(module, FakeQuantize):
            continue
        try:
            nodes.append(_node_to_data(node))
            if module is not None:
                layers[str(node.target)] = _layer_to_data(module)
        except ValueError as error:
            raise GraphDataError(f"the network cannot be saved: at '{node.name}', {error}") from error
    value = next(iter(graph.graph.find_nodes(op="placeholder"))).meta["tensor_meta"]
    return {"input": {"shape": list(value.shape), "dtype": _name(value.dtype)}, "nodes": nodes, "layers": layers}


def constants(data: Mapping[str, Any]) -> list[str]:
    """Names of the tensors, such as a class token, that the graph reads by itself and not through a layer."""
    return [node["target"] for node in data["nodes"] if node["op"] == "get_attr"]


def graph_from_data(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The graph that :func:`graph_to_data` wrote, without quantizers, in evaluation mode.

    Args:
        data: Plain data. Nothing in it is executed but the functions and layers of
            :mod:`qdrop.quantization.allowed`.
        tensors: Parameters and buffers of its layers, and its constants, by name. They are used, not copied.

    Raises:
        GraphDataError: If the data is no such graph or the tensors do not fit; says where.
    """
    try:
        model = _build(data, tensors)
        with torch.device("meta"):  # shapes only: a forged network has no memory to take
            output = record_shapes(model, torch.zeros(data["input"]["shape"], dtype=_named(data["input"]["dtype"])))
        for name, value in model.state_dict().items():
            if name in tensors and tensors[name].dtype != value.dtype:
                raise GraphDataError(f"{name} is {tensors[name].dtype}; expected {value.dtype}")
        model.load_state_dict(dict(tensors), strict=True, assign=True)
    except GraphDataError:
        raise
    except Exception as error:  # whatever torch says of arguments that do not fit each other
        raise GraphDataError(f"the network cannot be rebuilt: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(output, Tensor):
        raise GraphDataError(f"the network gives a {type(output).__name__}; expected a tensor")
    for node in model.graph.nodes:
        meta = node.meta["tensor_meta"]
        if isinstance(meta, TensorMeta) and meta.shape.numel() >= LARGEST:
            raise GraphDataError(f"'{node.name}' computes a tensor of {list(meta.shape)}, more than {LARGEST} values")
    return model.requires_grad_(False)


def _build(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The network on the meta device: without values."""
    parts: dict[str, Any] = {}
    with torch.device("meta"):  # nothing is allocated or drawn: the tensors are given
        for path, layer in data["layers"].items():
            if not layer["args"].keys().isdisjoint(("device", "dtype")):
                raise GraphDataError(f"the layer '{path}' says its device or type, which its tensors do")
            arguments = {identifier(key): _decode(value, {}) for key, value in layer["args"].items()}
            parts[module_path(path)] = layer_named(layer["type"])(**arguments)
    for name in map(module_path, constants(data)):
        parts[name] = nn.Parameter(tensors[name].to("meta"), requires_grad=False)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for node in data["nodes"]:
        nodes[node["name"]] = _node_from_data(node, graph, nodes)
    graph.lint()
    return TracedGraph(parts, graph).eval()


def _node_to_data(node: fx.Node) -> dict[str, Any]:
    target = node.target if isinstance(node.target, str) else name_of_function(node.target)
    _check_call(node.op, target, node.args, node.kwargs)
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
    _check_call(op, target, args, kwargs)
    called: str | Callable[..., Any] = function_named(target) if op == "call_function" else target
    node = graph.create_node(op, called, args, kwargs, name=name)
    if node.name != name:
        raise GraphDataError(f"the node name '{name}' is taken or reserved")
    return node


def _check_call(op: str, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse what would reach beyond arithmetic on tensors."""
    match op:
        case "placeholder":
            node_name(target)
        case "get_attr" | "call_module":
            module_path(target)
        case "call_method":
            if target not in METHODS:
                raise GraphDataError(f"it calls the method '{target}', which is not among those a file may call")
        case "call_function":
            plain = len(args) == 2 and isinstance(args[1], str) and args[1] in ATTRIBUTES and not kwargs
            if target == "builtins.getattr" and not plain:
                raise GraphDataError(
                    f"it reads the attribute {args[1:]}; a file may read {', '.join(sorted(ATTRIBUTES))}"
                )
        case "output":
            if target != "output":
                raise GraphDataError(f"the output is called {target!r}; expected 'output'")
        case _:
            raise GraphDataError(f"the operation is '{op}'; expected one of torch.fx")


def _layer_to_data(module: nn.Module) -> dict[str, Any]:
    """Class and arguments of a layer; each argument is kept by torch's layers as an attribute of its name."""
    kind = name_of_layer(module)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(layer_named(kind)).parameters.items():
        if name in ("device", "dtype") or not hasattr(module, name):
            continue  # without such an attribute it is a deprecated name of another argument
        value = getattr(module, name)
        value = value is not None if name == "bias" else value
        if value != parameter.default:
            arguments[name] = _encode(value)
    return {"type": kind, "args": arguments}


def _encode(value: Any) -> Any:
    match value:
        case fx.Node():
            while isinstance(module_of(value), FakeQuantize):
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
        case slice():
            return {"slice": [_encode(item) for item in (value.start, value.stop, value.step)]}
        case torch.dtype() | torch.memory_format():
            return {"torch": _name(value)}
        case _ if value is Ellipsis:
            return {"ellipsis": True}
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
        case {"slice": [start, stop, step], **rest} if not rest:
            return slice(*(_decode(item, nodes) for item in (start, stop, step)))
        case {"torch": str(name), **rest} if not rest:
            return _named(name)
        case {"ellipsis": True, **rest} if not rest:
            return ...
    raise GraphDataError(f"an argument is {value!r}, which is none of the forms a file may hold")


def _name(value: torch.dtype | torch.memory_format) -> str:
    return str(value).removeprefix("torch.")


def _named(name: str) -> Any:
    value = getattr(torch, name, None)
    if not isinstance(value, torch.dtype | torch.memory_format):
        raise GraphDataError(f"'{name}' is neither a dtype nor a memory format of torch")
    return value
