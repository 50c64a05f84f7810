"""Quantized networks in formats that other programs run.

python -m qdrop.export res18-w2a4 --format onnx --container int8
"""

from typing import TYPE_CHECKING, Any

from qdrop.export.errors import ExportError
from qdrop.export.options import Container
from qdrop.export.program import export_program
from qdrop.extras import extra

if TYPE_CHECKING:
    from qdrop.export.onnx_model import export_onnx

__all__ = ["Container", "ExportError", "export_onnx", "export_program"]


def __getattr__(name: str) -> Any:
    """`export_onnx`, imported once it is asked for: it alone needs the packages onnx and onnxscript."""
    if name != "export_onnx":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("onnx", "ONNX files"):
        from qdrop.export.onnx_model import export_onnx
    return export_onnx
