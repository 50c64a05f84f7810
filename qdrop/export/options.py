"""What whoever exports can choose; nothing here needs the package onnx."""

from enum import StrEnum


class Container(StrEnum):
    """Which integer types an exported ONNX model uses."""

    NATIVE = "native"
    """The narrowest that holds the bits: 2, 4 or 8 bits wide. The smallest file."""
    INT8 = "int8"
    """8 bits for all: what today's integer kernels compute with."""
