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
    if is_traced() or first.device.type != "cpu" or first.numel() <= size:
        return at_once(function, count, *tensors)
    results = _unfilled(first, count)
    arguments = [in_memory_order(t, first).reshape(-1) for t in (*tensors, *results)]
    for blocks in zip(*(argument.split(size) for argument in arguments), strict=True):
        function(*blocks)
    return results


def at_once(function: Callable[..., None], count: int, *tensors: Tensor) -> list[Tensor]:
    """As :func:`in_blocks`, in one piece: also for a function whose arguments' axes matter to it."""
    results = _unfilled(tensors[0], count)
    function(*tensors, *results)
    return results


def _unfilled(like: Tensor, count: int) -> list[Tensor]:
    """Results to be written into."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return [torch.empty_like(like, dtype=dtype, memory_format=memory_format(like)) for _ in range(count)]


def is_traced() -> bool:
    """Whether the work becomes a graph, for a compiler that finds its own blocks."""
    return get_proxy_mode() is not None or torch.compiler.is_compiling()
