"""What whoever exports can choose, and where it goes by default; nothing here needs the package onnx."""

from enum import StrEnum
from pathlib import Path


class Container(StrEnum):
    """Which integer types an exported ONNX model uses."""

    NATIVE = "native"
    """The narrowest that holds the bits: 2, 4 or 8 bits wide. The smallest file."""
    INT8 = "int8"
    """8 bits for all: what today's integer kernels compute with."""


def default_path(checkpoint: Path, container: Container | None) -> Path:
    """The file that a checkpoint is exported to unless another is named: beside it.

    Args:
        checkpoint: The packed checkpoint.
        container: Integer types of an ONNX file; None: a program of torch.export.
    """
    if container is None:
        return checkpoint.with_suffix(".pt2")
    return checkpoint.with_name(f"{checkpoint.stem}-{container}.onnx")


def default_paths(checkpoint: Path) -> list[Path]:
    """All files that a checkpoint is exported to unless others are named."""
    return [default_path(checkpoint, container) for container in (*Container, None)]
