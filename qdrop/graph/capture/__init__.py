"""From a network to one clean graph of ATen operators, by `torch.export`."""

from qdrop.graph.capture.network import capture

__all__ = ["capture"]
