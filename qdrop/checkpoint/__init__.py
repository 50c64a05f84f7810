"""A quantized network as one small file: what it holds (packed.py), and to and from it (file.py).

qdrop.save(quantized, "resnet18-w2a4.safetensors")
quantized = qdrop.load("resnet18-w2a4.safetensors")
"""

from qdrop.checkpoint.container import CheckpointError
from qdrop.checkpoint.file import check_graph, describe, load, read, save, write
from qdrop.checkpoint.packed import Checkpoint

__all__ = ["Checkpoint", "CheckpointError", "check_graph", "describe", "load", "read", "save", "write"]
