"""A quantized network as a program of `torch.export`, the way into other toolchains of PyTorch."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram, export, save
from torch.utils import _pytree as pytree

from qdrop.errors import first_line
from qdrop.export.errors import ExportError
from qdrop.files import write_file
from qdrop.graph.inputs import Example, arguments, rows


@torch.no_grad()
def export_program(model: fx.GraphModule, example: Example) -> ExportedProgram:
    """The network as one flat graph of PyTorch's operators, for inference with a batch of any size.

    Args:
        model: What `qdrop.quantize`, `qdrop.load` or `qdrop.trace` returned.
        example: An input `[N, ...]`, N of any size, or what holds several, as a data loader gives them.

    Returns:
        The program; `.module()` runs it and :func:`save_program` writes it.

    Raises:
        ExportError: If it computes differently for some sizes of the batch.
    """
    given = tuple(rows(arguments(model, example), [0, 0]).values())  # export takes a batch of one for a constant
    batch = {0: Dim("N")}
    shapes: Any = pytree.tree_map(lambda v: batch if isinstance(v, Tensor) and v.ndim else None, given)
    try:
        return export(model, given, dynamic_shapes=shapes)
    except torch._dynamo.exc.UserError as error:
        raise ExportError(f"the network cannot be exported for a batch of any size: {first_line(error)}") from error


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
