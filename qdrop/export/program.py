"""A quantized network as a program of `torch.export`, the way into other toolchains of PyTorch."""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram, export, save

from qdrop.files import write_file


@torch.no_grad()
def export_program(model: fx.GraphModule, example: Tensor) -> ExportedProgram:
    """The network as one flat graph of PyTorch's operators, for inference with a batch of any size.

    Args:
        model: What `qdrop.quantize`, `qdrop.load` or `qdrop.trace` returned.
        example: An input `[N, C, H, W]`; one image of it is used.

    Returns:
        The program; `.module()` runs it and :func:`save_program` writes it.
    """
    images = example[:1].repeat(2, *[1] * (example.ndim - 1))  # export takes a batch of one for a constant
    return export(model, (images,), dynamic_shapes=({0: Dim("N")},))


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program, whole or not at all; `torch.export.load` reads it.

    Raises:
        OSError: If it cannot be written.
    """
    data = io.BytesIO()
    with warnings.catch_warnings():
        # torch calls a weight complete only if it is contiguous, and ours are channels-last, whose layout the sums
        # of a convolution depend on. Each has its memory to itself, all of which is written, with its strides.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        save(program, data)
    write_file(path, data.getvalue())
