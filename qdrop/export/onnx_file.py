"""What an ONNX file tells about itself: recorded settings and figures, operators, types and sizes of its tensors.

Only the file itself is read, not the ones beside it in which a large model may keep its tensors.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdrop.errors import QdropError
from qdrop.extras import extra

RECORD = "qdrop.config"
"""Key in the file's metadata: the settings of the run, as JSON."""
METRICS = "qdrop.metrics"
"""The same for what was measured on the network before it was exported."""
DEFAULT_DOMAINS = ("", "ai.onnx")
"""The domain of ONNX's own operators has two names."""
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose second input is a weight, where it is a constant."""
NARROW = {"UINT2": 2, "INT2": 2, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4}
"""Bits of the types of which a byte holds several values."""


class OnnxFileError(QdropError, ValueError):
    """An ONNX file that cannot be used; says why."""


@dataclass(frozen=True)
class OnnxTensor:
    """A constant of the file."""

    name: str
    dtype: str
    """ONNX's name of the type: UINT2, INT4, FLOAT, ..."""
    bit: int
    """Bits of one value."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.ceil(self.elements * self.bit / 8)


@dataclass(frozen=True)
class OnnxSummary:
    """What is in a file."""

    opsets: dict[str, int]
    """Version of the operators of each domain, ONNX's own first."""
    operators: dict[str, int]
    """How many nodes of each operator, the most frequent first."""
    weights: tuple[OnnxTensor, ...]
    """Weights of layers, in the order of the layers."""
    others: tuple[OnnxTensor, ...]
    """All other constants: scales, zero points, biases, ..."""
    metrics: dict[str, Any]
    """What was measured before the export; empty in a file that is not ours."""


def settings(path: Path) -> dict[str, Any]:
    """The settings recorded in a file; none in one that is not ours.

    Raises:
        OnnxFileError: If the file is not readable as ONNX.
        MissingPackageError: If the package onnx is not installed.
        OSError: If it cannot be read.
    """
    return _recorded(path, _load(path), RECORD)


def summary(path: Path) -> OnnxSummary:
    """Operators and tensors of a file.

    Raises:
        OnnxFileError: If the file is not readable as ONNX.
        MissingPackageError: If the package onnx is not installed.
        OSError: If it cannot be read.
    """
    model = _load(path)
    tensors = {tensor.name: _tensor(path, tensor) for tensor in model.graph.initializer}
    weights = [name for name in dict.fromkeys(_weights(model.graph)) if name in tensors]
    versions = {entry.domain: entry.version for entry in model.opset_import}
    return OnnxSummary(
        {domain or "ai.onnx": versions[domain] for domain in sorted(versions, key=lambda d: d not in DEFAULT_DOMAINS)},
        dict(Counter(node.op_type for node in model.graph.node).most_common()),
        tuple(tensors[name] for name in weights),
        tuple(tensor for name, tensor in tensors.items() if name not in weights),
        _recorded(path, model, METRICS),
    )


def _weights(graph: Any) -> Iterator[str]:
    """Names of what weighted operators read as their weight, as it is or through a DequantizeLinear."""
    integers = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type in WEIGHTED and len(node.input) > 1:
            yield integers.get(node.input[1], node.input[1])


def _tensor(path: Path, tensor: Any) -> OnnxTensor:
    from onnx import TensorProto, helper

    try:
        dtype = TensorProto.DataType.Name(tensor.data_type)
        bit = NARROW.get(dtype) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError):
        raise OnnxFileError(f"{path}: {tensor.name} has the unknown type {tensor.data_type}") from None
    return OnnxTensor(tensor.name, dtype, bit, tuple(tensor.dims))


def _recorded(path: Path, model: Any, key: str) -> dict[str, Any]:
    """What a file's metadata says under a key, a JSON object; nothing if it has no such key."""
    recorded = {entry.key: entry.value for entry in model.metadata_props}
    try:
        found = json.loads(recorded.get(key, "{}"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, expected an object")
    except (ValueError, RecursionError) as error:
        raise OnnxFileError(f"{path}: {key} in its metadata cannot be read: {error}") from error
    return found


def _load(path: Path) -> Any:
    with extra("onnx", "ONNX files"):
        import onnx
        from google.protobuf.message import DecodeError
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise OnnxFileError(
            f"{path}: not a whole ONNX file ({error}). If it was copied or downloaded, do so again"
        ) from error
    if not model.opset_import:
        raise OnnxFileError(f"{path}: not a whole ONNX file: it names no version of its operators")
    return model
