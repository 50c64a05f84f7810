"""Quantized networks in formats that other programs run.

python -m qdrop.export runs/w2a4-res18 --format onnx --container int8
"""

try:
    import onnx as _onnx  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("exporting needs the package onnx: pip install 'qdrop[onnx]'") from error

from qdrop.export.containers import Container
from qdrop.export.emitter import ExportError
from qdrop.export.onnx_graph import export_onnx
from qdrop.export.program import export_program

__all__ = ["Container", "ExportError", "export_onnx", "export_program"]
