"""A traced, quantized network as an ONNX file.

quantized, _ = qdrop.quantize(model, images)
export_onnx(quantized, images[:1], Path("model.onnx"))
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from qdrop.errors import first_line
from qdrop.export.containers import OPSETS
from qdrop.export.emitter import Emitter, OnnxGraph, Value
from qdrop.export.errors import ExportError
from qdrop.export.facts import TensorFact, find_facts
from qdrop.export.onnx_layers import Bounds, clip_bounds, convolution, linear, quantize
from qdrop.export.options import Container
from qdrop.export.registry import FUNCTIONS, MODULES, NOTHING, RESHAPES, UNARY, supported
from qdrop.files import write_file
from qdrop.onnx_file import METRICS, RECORD
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.ops import module_of, operation, place

INPUT = "images"
OUTPUT = "output"


def export_onnx(
    model: fx.GraphModule,
    example: Tensor,
    path: str | Path,
    container: Container | str = Container.NATIVE,
    record: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network as ONNX, with a batch of any size.

    Quantizers that are on become QuantizeLinear and DequantizeLinear, their weights packed integers; those
    that are off are left out, so that a network without active quantizers is written in float32.

    Args:
        model: What `qdrop.quantize`, `qdrop.load` or `qdrop.trace` returned.
        example: An input `[N, C, H, W]`, for the shapes.
        path: The file to write; it appears under its name only once complete.
        container: Which integer types to use.
        record: Settings to record in the file, plain data; :mod:`qdrop.onnx_file` reads them.
        metrics: Figures of the network before export to record, plain data.

    Returns:
        The file that was written; :func:`to_onnx` gives the model itself.

    Raises:
        ExportError: If the network does something that has no ONNX form here; names the node, the operation
            and what is supported.
        OSError: If the file cannot be written.
    """
    proto = to_onnx(model, example, Container(container))
    recorded = {key: json.dumps(dict(data)) for key, data in ((RECORD, record), (METRICS, metrics)) if data}
    helper.set_model_props(proto, recorded)
    path = Path(path)
    write_file(path, proto.SerializeToString())
    return path


def to_onnx(model: fx.GraphModule, example: Tensor, container: Container) -> onnx.ModelProto:
    """The ONNX model that :func:`export_onnx` writes."""
    facts = find_facts(model, example)
    graph = OnnxGraph(container)
    values: dict[fx.Node, Any] = {}
    inputs, outputs = [], []
    for node in model.graph.nodes:
        fact = facts[node]
        if node.op == "placeholder":
            values[node] = Value(INPUT, fact.shape)
            inputs.append(_declare(INPUT, fact))
        elif node.op == "output":
            result = node.args[0]
            graph.nodes.append(helper.make_node("Identity", [values[result].name], [OUTPUT], name=OUTPUT))
            outputs.append(_declare(OUTPUT, facts[result]))
        elif _has_tensor(fact):
            emitter = Emitter(graph, node, _shapes(fact))
            values[node] = _named(_write(emitter, values, facts), fact)
        else:
            values[node] = fact
    return _model(graph, inputs, outputs)


def _declare(name: str, fact: TensorFact) -> onnx.ValueInfoProto:
    shape = ["N" if size is None else size for size in fact.shape]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(graph: OnnxGraph, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
    initializers = list(graph.initializers.values())
    proto = helper.make_graph(graph.nodes, "qdrop", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", OPSETS[graph.container])]
    model = helper.make_model(proto, opset_imports=opsets, producer_name="qdrop")
    model.ir_version = helper.find_min_ir_version_for(opsets)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the network cannot be written as valid ONNX: {first_line(error)}") from error
    return model


def _has_tensor(fact: Any) -> bool:
    if isinstance(fact, tuple):
        return any(_has_tensor(part) for part in fact)
    return isinstance(fact, TensorFact)


def _shapes(fact: Any) -> Any:
    return tuple(_shapes(part) for part in fact) if isinstance(fact, tuple) else fact.shape


def _named(names: Any, fact: Any) -> Any:
    """The values that carry these names."""
    if isinstance(fact, tuple):
        return tuple(_named(name, part) for name, part in zip(names, fact, strict=True))
    return Value(names, fact.shape)


def _write(e: Emitter, values: dict[fx.Node, Any], facts: dict[fx.Node, Any]) -> Any:
    """Write one node of the traced graph; the name of its value, or of each of them."""
    node, module = e.node, module_of(e.node)
    if node.op == "get_attr":
        assert node.graph.owning_module is not None
        return e.constant(getattr(*place(node.graph.owning_module, str(node.target))))
    if isinstance(module, FakeQuantize):
        source, bounds = _unclipped(node)
        return quantize(e, module, values[source], bounds) if module.active else values[source].name
    if _absorbed(node):
        return values[node.all_input_nodes[0]].name
    args: Any = fx.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
    if isinstance(module, nn.Linear):
        return linear(e, module, *args)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return convolution(e, module, *args)
    name = operation(node)
    if module is not None:
        name, attributes = _module_call(e, module)
        kwargs = {key: getattr(module, key) for key in attributes}
    return _call(e, name, args, dict(kwargs))


def _call(e: Emitter, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    kwargs.pop("inplace", None)
    first: Any = args[0] if args else kwargs.get("input")
    if name in NOTHING:
        return e.operand(first)
    if name in RESHAPES:
        return e.reshaped(first)
    if name in UNARY:
        return e.add(UNARY[name], first)
    if name not in FUNCTIONS:
        raise e.error(f"calls {name or e.node.target}, which is none of {supported()}")
    try:
        return FUNCTIONS[name](e, *args, **kwargs)
    except ExportError:  # a ValueError too, and says what is wrong
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"  # a KeyError says only the key
        raise e.error(f"calls {name} with arguments that are not supported ({reason})") from error


def _module_call(e: Emitter, module: nn.Module) -> tuple[str, tuple[str, ...]]:
    """The function that `module` computes, and the names of its settings."""
    for kind, call in MODULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return call
    raise e.error(f"is none of the modules {', '.join(sorted(kind.__name__ for kind in MODULES))}")


def _unclipped(node: fx.Node) -> tuple[fx.Node, Bounds]:
    """What a quantizer reads before the function that only clips it, and that function's bounds."""
    source = node.all_input_nodes[0]
    if _absorbed(source):
        bounds = clip_bounds(source)
        assert bounds is not None
        return source.all_input_nodes[0], bounds
    return source, (None, None)


def _absorbed(node: fx.Node) -> bool:
    """Whether a function that only clips is done by the one active quantizer that reads it."""
    reader = module_of(next(iter(node.users))) if len(node.users) == 1 else None
    quantized = isinstance(reader, FakeQuantize) and reader.active and reader.spec.ch_axis == -1
    return quantized and clip_bounds(node) is not None
