"""How the values of a weight become integers: to the nearest, or as is learned. One file for each way."""

from qdrop.quantization.rounding.base import HeldRounding, LearnedRounding, Rounding

__all__ = ["HeldRounding", "LearnedRounding", "Rounding"]
