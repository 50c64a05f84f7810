"""Quantized networks in formats that other programs run."""

from qdrop.export.containers import Container
from qdrop.export.emitter import ExportError
from qdrop.export.onnx_graph import export_onnx

__all__ = ["Container", "ExportError", "export_onnx"]
