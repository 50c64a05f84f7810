"""Quantized networks in formats that other programs run.

python -m qdrop.export res18-w2a4 --format onnx --container int8
"""

from typing import TYPE_CHECKING, Any

from qdrop.export.errors import ExportError
from qdrop.export.options import Container
from qdrop.export.program import export_program

if TYPE_CHECKING:
    from qdrop.export.onnx_model import export_onnx

__all__ = ["Container", "ExportError", "export_onnx", "export_program"]


def __getattr__(name: str) -> Any:
    """`export_onnx`, imported once it is asked for: it alone needs the packages onnx and onnxscript."""
    if name != "export_onnx":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from qdrop.export.onnx_model import export_onnx
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnx_ir", "onnxscript"):
            raise
        raise ModuleNotFoundError(
            "writing ONNX needs the packages onnx and onnxscript: pip install 'qdrop[onnx]'"
        ) from error
    return export_onnx
