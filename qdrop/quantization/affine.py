"""The arithmetic of uniform affine quantization: integer ranges, scales, quantize-dequantize.

Every quantizer of the package goes through :func:`fake_quantize`; nothing here keeps state.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qdrop.quantization.blocks import in_blocks, in_slices, is_traced
from qdrop.quantization.drop import Mask
from qdrop.quantization.layout import in_memory_order

MIN_SCALE = 1e-8
"""Scales are kept at or above this, so that an all-zero tensor divides by something."""


def integer_range(bit: int, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest integer of a `bit`-wide quantizer.

    Args:
        bit: Width, 2 to 8.
        symmetric: Signed integers around zero rather than unsigned ones.

    Returns:
        `(0, 2^b - 1)`, or `(-2^(b-1), 2^(b-1) - 1)` if symmetric.

    Raises:
        ValueError: For a width outside 2..8.
    """
    if not 2 <= bit <= 8:
        raise ValueError(f"bit is {bit}; widths from 2 to 8 are supported")
    if symmetric:
        return -(2 ** (bit - 1)), 2 ** (bit - 1) - 1
    return 0, 2**bit - 1


def scale_from_range(lo: Tensor, hi: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover the real range `[lo, hi]`, which is first widened to hold zero.

    Args:
        lo: Lower ends, any shape.
        hi: Upper ends, same shape.
        qmin: Smallest integer.
        qmax: Largest integer.
        symmetric: Keep the zero point at 0 and cover the larger of the two ends.

    Returns:
        Scale (at least `MIN_SCALE`) and integer-valued zero point, float32, shape of `lo`.
    """
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    if symmetric:
        scale = (torch.maximum(-lo, hi) / ((qmax - qmin) / 2)).clamp(min=MIN_SCALE)
        return scale, torch.zeros_like(scale)
    scale = ((hi - lo) / (qmax - qmin)).clamp(min=MIN_SCALE)
    return scale, (qmin - torch.round(lo / scale)).clamp(qmin, qmax)


def along_channels(values: Tensor, like: Tensor, ch_axis: int) -> Tensor:
    """View per-channel `values` `[C]` so that they broadcast along axis `ch_axis` of `like`.

    A per-tensor quantizer (`ch_axis` -1) holds one value, `[1]`, which broadcasts as it is.
    """
    if ch_axis == -1:
        return values
    shape = [1] * like.ndim
    shape[ch_axis] = -1
    return values.view(shape)


class _FakeQuantize(torch.autograd.Function):
    """Quantize-dequantize with straight-through gradients for the input, the scale and the zero point.

    With `c = clamp(round(x/s) + z) - z` the output is `s*c`. Inside the range the gradient for `x` is
    that of the output and the one for `s` is `c - x/s`; outside they are 0 and `c` (Esser et al., LSQ,
    ICLR 2020, eq. 3). The zero point only moves what is clamped: `-s` outside, 0 inside (Bhalgat et al.,
    LSQ+, 2020). The end levels `qmin` and `qmax` count as outside, as in the golden traces of the
    published method. Where `keep` is 0 the input passes untouched, and with it its
    gradient.

    Written as one function: autograd would keep some ten tensors of the input's size where two are enough, the
    rounded steps, which tell whether the gradient passes, and the derivative for `s`. A value that is not kept counts
    as one step above the lowest: that is inside, with a derivative for `s` of 0.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, keep: Mask | None
    ) -> Tensor:
        lo, span = qmin - _number(zero_point), qmax - qmin
        inner = torch.as_tensor(lo + 1, dtype=scale.dtype)

        def work(step: Tensor, lo: Any, inner: Tensor, x: Tensor, *others: Tensor) -> None:
            *numbers, out, rounded, slope_scale = others
            steps = torch.div(x, step, out=out)
            kept = None if keep is None else keep.choose(*numbers)
            if kept is not None:
                # A mix is exact where `kept` is 0 and where it is 1, and far faster than `where` on a CPU.
                steps = torch.lerp(inner, steps, kept, out=slope_scale)
            torch.round(steps, out=rounded)
            inside = _within(steps, rounded, lo, span)
            level = torch.clamp(rounded, lo, lo + span, out=out)
            torch.sub(level, inside, out=slope_scale)
            level.mul_(step)
            if kept is not None:
                torch.lerp(x, out, kept, out=out)

        numbers = () if keep is None else (keep.numbers,)
        out, rounded, slope_scale = _results(work, (_scalar(scale), lo, inner), 3, x, *numbers)
        ctx.save_for_backward(rounded, slope_scale, scale, zero_point)
        ctx.qmin, ctx.span = qmin, span
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rounded, slope_scale, scale, zero_point = ctx.saved_tensors
        passing = _within(grad, rounded, ctx.qmin - _number(zero_point), ctx.span)
        grad_scale = grad_zero_point = None
        if ctx.needs_input_grad[1]:
            grad_scale = _sum_of_product(grad, slope_scale, scale)
        if ctx.needs_input_grad[2]:
            grad_zero_point = ((passing - grad) * scale).sum_to_size(scale.shape)
        return passing, grad_scale, grad_zero_point, None, None, None


def _within(values: Tensor, rounded: Tensor, lo: Tensor | float, span: int) -> Tensor:
    """`values` where `rounded` is strictly between `lo` and `lo + span`, else 0; `values` in the shape of `rounded`."""
    if isinstance(lo, Tensor):
        rounded, lo = rounded - lo, 0.0
    return torch.ops.aten.hardtanh_backward(values, rounded, lo, lo + span)


def _sum_of_product(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """`a * b` summed to the shape of `like`."""
    if like.numel() > 1 or is_traced():
        return (a * b).sum_to_size(like.shape)  # a compiler fuses it with whatever else runs over these tensors
    # The products' sum in one pass, without keeping them.
    return torch.dot(in_memory_order(a, a).reshape(-1), in_memory_order(b, a).reshape(-1)).view_as(like)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, keep: Mask | None = None
) -> Tensor:
    """Round `x` to the grid of a quantizer: `s * (clamp(round(x/s) + z, qmin, qmax) - z)`.

    Gradients are straight-through for `x` and learned-step-size for `scale` and `zero_point`.

    Args:
        x: Values, any shape.
        scale: Positive, broadcastable to `x` (see :func:`along_channels`).
        zero_point: Integer-valued float, same shape as `scale`.
        qmin: Smallest integer.
        qmax: Largest integer.
        keep: Optional mask, shape of `x`: where it is 0 the value is not quantized. This is QDrop's random
            drop (Wei et al., ICLR 2022, eq. 6).

    Returns:
        The rounded values, shape of `x`, in the type of `scale`: float32 also behind a layer in bfloat16.
    """
    x = x.to(scale.dtype)
    if torch.is_grad_enabled() or keep is not None:
        differentiable: Tensor = _FakeQuantize.apply(x, scale, zero_point, qmin, qmax, keep)
        return differentiable

    def work(step: Tensor, zero: Tensor, x: Tensor, out: Tensor) -> None:
        torch.div(x, step, out=out).round_().add_(zero).clamp_(qmin, qmax).sub_(zero).mul_(step)

    return _results(work, (_scalar(scale), _scalar(zero_point)), 1, x)[0]


def _scalar(value: Tensor) -> Tensor:
    """A single value without axes, which broadcasts to any shape, a block of a tensor too; others as they are."""
    return value.reshape(()) if value.numel() == 1 else value


def _number(value: Tensor) -> Any:  # a Tensor or a float: `clamp` takes either, in its type hints not their union
    """A single value as a number, where reading that neither waits for a GPU nor ends a graph; else :func:`_scalar`."""
    if value.numel() == 1 and value.device.type == "cpu" and not is_traced():
        return value.item()
    return _scalar(value)


def _results(function: Callable[..., None], grid: tuple[Any, ...], count: int, *tensors: Tensor) -> list[Tensor]:
    """Results of a function that takes a grid, `tensors` and the results, and is element-wise in all but the grid.

    Args:
        function: See :func:`in_slices`.
        grid: Single values, or tensors that hold one for each channel; the scale first.
        count: Number of results.
        tensors: Arguments.
    """
    if grid[0].numel() == 1:
        return in_blocks(partial(function, *grid), count, *tensors)
    return in_slices(function, grid, count, *tensors)
