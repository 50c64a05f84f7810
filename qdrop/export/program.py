"""A quantized network as a program of `torch.export`, the way into other toolchains of PyTorch."""

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram, export


@torch.no_grad()
def export_program(model: fx.GraphModule, example: Tensor) -> ExportedProgram:
    """The network as one flat graph of PyTorch's operators, for inference with a batch of any size.

    Args:
        model: What `qdrop.quantize`, `qdrop.load` or `qdrop.trace` returned.
        example: An input `[N, C, H, W]`; one image of it is used.

    Returns:
        The program; `.module()` runs it and `torch.export.save` writes it.
    """
    images = example[:1].repeat(2, *[1] * (example.ndim - 1))  # export takes a batch of one for a constant
    return export(model, (images,), dynamic_shapes=({0: Dim("N")},))
