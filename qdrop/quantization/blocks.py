"""Element-wise work on a CPU, in pieces that stay in its cache.

A quantizer is a dozen element-wise operations. One after the other over a whole activation each of them waits for main
memory; block by block only the first read and the last write do.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from qdrop.quantization.layout import in_memory_order, memory_format

BLOCK = 1 << 17
"""Elements of a block, for each thread: ten tensors of so many float32 fit into a cache, and calls cost little."""


def in_blocks(function: Callable[..., None], count: int, *tensors: Tensor) -> list[Tensor]:
    """Results of an element-wise function, computed block by block where that is faster.

    Args:
        function: Takes `tensors`, then the `count` tensors to write its results into; an element of a result depends
            on the same element of its arguments alone.
        count: Number of results.
        tensors: Arguments, all of one shape.

    Returns:
        The results, in the shape and memory layout of the first argument; float32, or float64 if that is.
    """
    first, size = tensors[0], BLOCK * torch.get_num_threads()
    layout = memory_format(first)
    dtype = torch.promote_types(first.dtype, torch.float32)
    results = [torch.empty_like(first, dtype=dtype, memory_format=layout) for _ in range(count)]
    if is_traced() or first.device.type != "cpu" or first.numel() <= size:
        function(*tensors, *results)
    else:
        arguments = [in_memory_order(t, first).reshape(-1) for t in (*tensors, *results)]
        for blocks in zip(*(argument.split(size) for argument in arguments), strict=True):
            function(*blocks)
    return results


def is_traced() -> bool:
    """Whether the work becomes a graph, for a compiler that finds its own blocks."""
    return get_proxy_mode() is not None or torch.compiler.is_compiling()
