"""Where PyTorch's translation of an operator to ONNX must not stand, ours; each says why."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18

from qdrop.export import resizing

op: Any = opset18
Value = Any
"""A value of the ONNX graph, as PyTorch's exporter hands it to a translation."""


def linear(x: Value, weight: Value, bias: Value = None) -> Value:
    """A fully connected layer on `[..., I]`, always a Gemm.

    PyTorch writes a MatMul for rows of tokens. ONNX Runtime (1.32) fuses a MatMul with packed weights into an operator
    that quantizes the activations once more, and that computes something else where 2-bit rows do not fill whole bytes.
    """
    return _gemm(x, weight, bias, transB=1)


def matmul(x: Value, other: Value) -> Value:
    """A product of matrices; with one matrix on the right a Gemm, as :func:`linear`."""
    return _gemm(x, other, None) if len(x.shape) > 1 and len(other.shape) == 2 else op.MatMul(x, other)


def _gemm(x: Value, matrix: Value, bias: Value, **settings: Any) -> Value:
    if len(x.shape) == 2:
        return op.Gemm(x, matrix, bias, **settings)
    *rows, inner = x.shape
    outer = matrix.shape[0 if settings else 1]
    product = op.Gemm(op.Reshape(x, _numbers([-1, inner])), matrix, bias, **settings)
    if sum(not isinstance(size, int) for size in rows) <= 1:
        return op.Reshape(product, _numbers([*rows, outer]))
    return op.Reshape(product, op.Concat(op.Shape(x, end=-1), _numbers([outer]), axis=0))


def _numbers(sizes: Sequence[Any]) -> Value:
    """Sizes as a constant, -1 for the one that varies."""
    return op.Constant(value_ints=[size if isinstance(size, int) else -1 for size in sizes])


def mean(x: Value, dim: Sequence[int] | None, keepdim: bool = False, dtype: int = -1) -> Value:
    """A mean over all pixels is a global pooling, which integer kernels exist for."""
    rank = len(x.shape)
    axes = sorted(axis % rank for axis in dim or range(rank))
    if rank == 4 and axes == [2, 3]:
        pooled = op.GlobalAveragePool(x)
        return pooled if keepdim else op.Squeeze(pooled, _numbers(axes))
    return op.ReduceMean(x, _numbers(axes), keepdims=int(keepdim))


def avg_pool2d(
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """An average pooling; PyTorch's translation does not look at `divisor_override`."""
    if divisor_override is not None and ceil_mode:
        raise NotImplementedError(f"it has ceil_mode and divisor_override={divisor_override}")
    kernel, pads = (list(size) * (2 // len(size)) for size in (kernel_size, padding))
    pooled = op.AveragePool(
        x,
        kernel_shape=kernel,
        strides=list(stride) * (2 // len(stride)) if stride else kernel,
        pads=pads * 2,
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_include_pad or divisor_override is not None),
    )
    if divisor_override is None:
        return pooled
    return op.Mul(pooled, op.Constant(value_float=kernel[0] * kernel[1] / divisor_override))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.linear.default: linear,
    torch.ops.aten.matmul.default: matmul,
    torch.ops.aten.mm.default: matmul,
    torch.ops.aten.mean.dim: mean,
    torch.ops.aten.avg_pool2d.default: avg_pool2d,
    **resizing.TRANSLATIONS,
}
"""By operator."""
