"""What an exported ONNX file tells about itself: recorded settings, operators, types and sizes of its tensors."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdrop.errors import QdropError

RECORD = "qdrop.config"
"""Key in the file's metadata: the settings of the run, as JSON."""


class OnnxFileError(QdropError, ValueError):
    """An ONNX file that cannot be used; says why."""


@dataclass(frozen=True)
class OnnxTensor:
    """A constant of the file."""

    name: str
    dtype: str
    """ONNX's name of the type: UINT2, INT4, FLOAT, ..."""
    shape: tuple[int, ...]
    nbytes: int
    """As stored."""


@dataclass(frozen=True)
class OnnxSummary:
    """What is in a file."""

    opset: int
    operators: dict[str, int]
    """How many nodes of each operator, the most frequent first."""
    tensors: tuple[OnnxTensor, ...]


def settings(path: Path) -> dict[str, Any]:
    """The settings recorded in a file; none in one that is not ours.

    Raises:
        OnnxFileError: If the package onnx is missing or the file is not readable as ONNX.
        OSError: If it cannot be read.
    """
    recorded = {entry.key: entry.value for entry in _load(path).metadata_props}
    try:
        found = json.loads(recorded.get(RECORD, "{}"))
    except ValueError as error:
        raise OnnxFileError(f"{path}: its recorded settings cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def summary(path: Path) -> OnnxSummary:
    """Operators and tensors of a file.

    Raises:
        OnnxFileError: If the package onnx is missing or the file is not readable as ONNX.
        OSError: If it cannot be read.
    """
    from onnx import TensorProto

    model = _load(path)
    tensors = tuple(
        OnnxTensor(t.name, TensorProto.DataType.Name(t.data_type), tuple(t.dims), t.ByteSize())
        for t in model.graph.initializer
    )
    counts = Counter(node.op_type for node in model.graph.node)
    opset = max(entry.version for entry in model.opset_import)
    return OnnxSummary(opset, dict(counts.most_common()), tensors)


def _load(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        raise OnnxFileError("reading ONNX files needs the package onnx: pip install 'qdrop[onnx]'") from None
    try:
        return onnx.load(path)
    except DecodeError as error:
        raise OnnxFileError(f"{path}: not an ONNX file: {error}") from error
