"""Pooling and reductions in ONNX: handlers with the arguments of the PyTorch functions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qdrop.export.emitter import Emitter, Value

Handler = Callable[..., Any]


def pair(value: Any) -> list[int]:
    """A setting of both directions; one number counts for both."""
    return list(value) if isinstance(value, Sequence) else [value, value]


def _max_pool2d(
    e: Emitter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> str:
    if return_indices:
        raise e.error("returns indices")
    windows = _windows(kernel_size, stride, padding, ceil_mode)
    return e.add("MaxPool", input, **windows, dilations=pair(dilation))


def _avg_pool2d(
    e: Emitter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str:
    if divisor_override is not None:
        raise e.error(f"has divisor_override={divisor_override}, and only None is supported")
    windows = _windows(kernel_size, stride, padding, ceil_mode)
    return e.add("AveragePool", input, **windows, count_include_pad=int(count_include_pad))


def _windows(kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool) -> dict[str, Any]:
    """Size and places of the windows, as attributes; without a stride they stand side by side."""
    kernel = pair(kernel_size)
    return {
        "kernel_shape": kernel,
        "strides": pair(stride) if stride else kernel,
        "pads": pair(padding) * 2,
        "ceil_mode": int(ceil_mode),
    }


def _adaptive_avg_pool2d(e: Emitter, input: Value, output_size: Any) -> str:
    return _adaptive(e, input, "AveragePool")


def _adaptive_max_pool2d(e: Emitter, input: Value, output_size: Any, return_indices: bool = False) -> str:
    if return_indices:
        raise e.error("returns indices")
    return _adaptive(e, input, "MaxPool")


def _adaptive(e: Emitter, input: Value, pool: str) -> str:
    """Pool to a fixed size: globally, or in equal windows."""
    size, out = input.shape[-2:], e.shape[-2:]
    if out == (1, 1):
        return e.add(f"Global{pool}", input)
    if None in size or any(have % want for have, want in zip(size, out, strict=True)):
        raise e.error(f"pools {size} to {out}, and only whole windows are supported")
    kernel = [have // want for have, want in zip(size, out, strict=True)]
    return e.add(pool, input, kernel_shape=kernel, strides=kernel)


def _mean(e: Emitter, input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> str:
    """A mean over all positions is a global pooling, which integer kernels exist for."""
    axes = _axes(input, dim)
    if len(input.shape) == 4 and axes == [2, 3]:
        pooled = e.add("GlobalAveragePool", input)
        return pooled if keepdim else e.reshaped(pooled)
    return e.add("ReduceMean", input, e.constant(axes, np.int64), keepdims=int(keepdim))


def _total(e: Emitter, input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> str:
    return e.add("ReduceSum", input, e.constant(_axes(input, dim), np.int64), keepdims=int(keepdim))


def _axes(input: Value, dim: Any) -> list[int]:
    rank = len(input.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    return sorted(axis % rank for axis in dims)


HANDLERS: dict[str, Handler] = {
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "adaptive_max_pool2d": _adaptive_max_pool2d,
    "mean": _mean,
    "sum": _total,
}
"""By the plain name of the PyTorch function or method; see `qdrop.quantization.ops.operation`."""
