"""Which parts of a network are reconstructed one after another."""

from qdrop.graph.units.find import UnitSpec, find_units

__all__ = ["UnitSpec", "find_units"]
