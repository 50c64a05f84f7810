"""Element-wise work on a CPU, in pieces that stay in its cache.

A quantizer is a dozen element-wise operations. One after the other over a whole activation each of them waits for main
memory; block by block only the first read and the last write do.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from qdrop.quantization.layout import in_memory_order, memory_format
from qdrop.quantization.side_by_side import side_by_side

BLOCK = 1 << 17
"""Most elements of a block: ten tensors of so many float32 fit into a cache, and calls cost little."""
SMALLEST = 1 << 15
"""Fewest elements that a thread is woken for, as PyTorch has it."""


def in_blocks(function: Callable[..., None], count: int, *tensors: Tensor) -> list[Tensor]:
    """Results of an element-wise function, computed block by block, each block on one thread.

    Args:
        function: Takes `tensors`, then the `count` tensors to write its results into; an element of a result depends
            on the same element of its arguments alone.
        count: Number of results.
        tensors: Arguments, all of one shape.

    Returns:
        The results, in the shape and memory layout of the first argument; float32, or float64 if that is.
    """
    first, results = tensors[0], _unfilled(tensors[0], count)

    def cut(argument: Tensor, size: int) -> tuple[Tensor, ...]:
        return in_memory_order(argument, first).reshape(-1).split(size)

    _in_pieces(function, first, (*tensors, *results), cut)
    return results


def in_slices(function: Callable[..., None], values: tuple[Tensor, ...], count: int, *tensors: Tensor) -> list[Tensor]:
    """As :func:`in_blocks`, for a function that also takes values of each channel; a block holds whole channels.

    Args:
        function: Takes `values`, then `tensors`, then the results.
        values: All of one shape, 1 along each axis but that of the channels.
        count: Number of results.
        tensors: Arguments, all of one shape.
    """
    first, results = tensors[0], _unfilled(tensors[0], count)
    axis = max(range(first.ndim), key=values[0].shape.__getitem__)

    def cut(argument: Tensor, size: int) -> tuple[Tensor, ...]:
        return argument.split(max(1, size * first.shape[axis] // first.numel()), axis)

    _in_pieces(function, first, (*values, *tensors, *results), cut)
    return results


def _in_pieces(
    function: Callable[..., None],
    whole: Tensor,
    arguments: tuple[Tensor, ...],
    cut: Callable[[Tensor, int], tuple[Tensor, ...]],
) -> None:
    """Call the function for each piece of its arguments, of which `cut` makes pieces of that many elements.

    A compiler finds pieces by itself, and a GPU needs none.
    """
    if is_traced() or whole.device.type != "cpu":
        return function(*arguments)
    elements = whole.numel()
    busy = max(1, min(torch.get_num_threads(), elements // SMALLEST))
    size = min(BLOCK, -(-elements // busy))
    pieces = [arguments] if elements <= size else zip(*(cut(a, size) for a in arguments), strict=True)
    return side_by_side(function, pieces)


def _unfilled(like: Tensor, count: int) -> list[Tensor]:
    """Results to be written into."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return [torch.empty_like(like, dtype=dtype, memory_format=memory_format(like)) for _ in range(count)]


def is_traced() -> bool:
    """Whether the work becomes a graph, for a compiler that finds its own blocks."""
    return get_proxy_mode() is not None or torch.compiler.is_compiling()
