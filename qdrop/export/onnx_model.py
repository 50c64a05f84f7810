"""A captured, quantized network as an ONNX file.

quantized, _ = qdrop.quantize(model, images)
export_onnx(quantized, images[:1], Path("model.onnx"))
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass, OutputFixPass
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qdrop.errors import first_line
from qdrop.export.containers import OPSETS
from qdrop.export.errors import ExportError
from qdrop.export.lowering import lower
from qdrop.export.marks import marked
from qdrop.export.onnx_file import METRICS, RECORD
from qdrop.export.options import Container
from qdrop.export.program import export_program
from qdrop.export.translations import TRANSLATIONS
from qdrop.files import write_file
from qdrop.graph.ends import giving
from qdrop.graph.inputs import Example, arguments
from qdrop.graph.ops import operation, where


def export_onnx(
    model: fx.GraphModule,
    example: Example,
    path: str | Path,
    container: Container | str = Container.NATIVE,
    record: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network as ONNX, with a batch of any size.

    Quantizers that are on become QuantizeLinear and DequantizeLinear, their weights packed integers; those
    that are off are left out, so that a network without active quantizers is written in float32.

    Inputs are called as the arguments of the network's `forward`, members of nests `NAME.KEY`. An output is called
    `output`; of several, each by its key, or `output.INDEX`.

    Args:
        model: What `qdrop.quantize`, `qdrop.load` or `qdrop.trace` returned.
        example: An input `[N, ...]`, or what holds several, as a data loader gives them; for the shapes.
        path: The file to write; it appears under its name only once complete.
        container: Which integer types to use.
        record: Settings to record in the file, plain data; :mod:`qdrop.export.onnx_file` reads them.
        metrics: Figures of the network before export to record, plain data.

    Returns:
        The file that was written; :func:`to_onnx` gives the model itself.

    Raises:
        ExportError: If the network does something that has no ONNX form here; names the node and the operation.
        OSError: If the file cannot be written.
    """
    proto = to_onnx(model, example, Container(container))
    recorded = {key: json.dumps(dict(data)) for key, data in ((RECORD, record), (METRICS, metrics)) if data}
    onnx.helper.set_model_props(proto, recorded)
    path = Path(path)
    write_file(path, proto.SerializeToString())
    return path


def to_onnx(model: fx.GraphModule, example: Example, container: Container) -> onnx.ModelProto:
    """The ONNX model that :func:`export_onnx` writes."""
    copy = marked(model)
    flat = giving(copy, list(_outputs(copy).values()))
    try:
        program = torch.onnx.export(
            export_program(flat, arguments(model, example)),
            input_names=_input_names(arguments(model, example)),
            opset_version=OPSETS[container],
            custom_translation_table=TRANSLATIONS,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _error(model, error) from error
    assert program is not None
    lower(program.model, model, container)
    return _finished(program.model, list(_outputs(model)))


def _finished(model: ir.Model, outputs: list[str]) -> onnx.ModelProto:
    """The model with its outputs named, and nothing in it that an interpreter does not read."""
    OutputFixPass()(model)  # an output that is an input, or another output too
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    _name_batch(model.graph)
    NameFixPass()(model)
    ClearMetadataAndDocStringPass()(model)
    model.graph.name = model.producer_name = "qdrop"
    model.producer_version = None
    proto: onnx.ModelProto = ir.to_proto(model)
    del proto.graph.value_info[:]
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the network cannot be written as valid ONNX: {first_line(error)}") from error
    return proto


def _name_batch(graph: ir.Graph) -> None:
    """Call the size of the batch N in the shapes of inputs and outputs; PyTorch numbers it."""
    symbols = [str(value.shape[0]) for value in graph.inputs if value.shape and not isinstance(value.shape[0], int)]
    for value in (*graph.inputs, *graph.outputs):
        if symbols and value.shape is not None:
            sizes = [s if isinstance(s, int) else str(s).replace(symbols[0], "N") for s in value.shape]
            value.shape = ir.Shape(sizes)


def _input_names(given: Mapping[str, Any]) -> list[str]:
    return [".".join(path) for path, value in _leaves(given) if isinstance(value, Tensor)]


def _outputs(model: fx.GraphModule) -> dict[str, fx.Node]:
    """The outputs by their places in the nest that the network gives; what is no output, as a number, left out."""
    (node,) = model.graph.find_nodes(op="output")
    found = [(path, value) for path, value in _leaves(node.args[0]) if isinstance(value, fx.Node)]
    return {".".join(path if path and not path[0].isdigit() else ("output", *path)): value for path, value in found}


def _leaves(nest: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Members of a nest, and the keys that lead to each."""
    for path, value in pytree.tree_flatten_with_path(nest)[0]:
        yield tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path), value


def _error(model: fx.GraphModule, error: BaseException) -> ExportError:
    """One sentence about what PyTorch's exporter could not do, with the node it came to."""
    messages = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        messages.append(str(error))
    reason = "PyTorch has no translation of it" if messages[-1].startswith(_UNKNOWN) else first_line(error)
    found = next(filter(None, map(_FAILED.search, messages)), None)
    node = found and _node_called(model, found["operator"], int(found["index"] or 0))
    place = where(node) if node else found["operator"] if found else "the network"
    return ExportError(f"{place} cannot be written as ONNX: {reason}")


_UNKNOWN = "No ONNX function found"
_FAILED = re.compile(r"translating node %\w+?(_(?P<index>\d+))? : .*?target=[\w.]*?\.(?P<operator>\w+)\.\w+\]")
"""What PyTorch says of the node that it could not translate: the copy of ours that has its operator's name."""


def _node_called(model: fx.GraphModule, operator: str, index: int) -> fx.Node | None:
    """Our node of an operator, which may have become a part of itself, as `special_i0` becomes `i0`."""
    same = [node for node in model.graph.nodes if operation(node) == operator]
    like = [node for node in model.graph.nodes if operation(node).endswith(f"_{operator}")]
    found = same or like
    return found[min(index, len(found) - 1)] if found else None
