"""Resizing in ONNX, with the pixels that PyTorch picks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnxscript import opset18
from torch import Tensor

op: Any = opset18
Value = Any
"""A value of the ONNX graph, as PyTorch's exporter hands it to a translation."""


def nearest(x: Value, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Value:
    """Whole factors by Resize; else the pixels that PyTorch picks, by their numbers.

    Resize, which PyTorch's exporter always writes, finds them by a division where PyTorch multiplies: at a whole
    number, rounding alone decides which of two pixels it is. They differ in one of thirty pairs of sizes.
    """
    old = _sizes(x)
    call = {"scale_factor": scale_factors} if output_size is None else {"size": output_size}
    picks = [_picked(old, axis, call) for axis in range(len(old))]
    if all(_repeats(picked, size) for picked, size in zip(picks, old, strict=True)):
        scales = [1.0, 1.0, *(len(picked) / size for picked, size in zip(picks, old, strict=True))]
        rule = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return op.Resize(x, None, op.Constant(value_floats=scales), None, mode="nearest", **rule)
    for axis, picked in enumerate(picks, start=2):
        x = op.Gather(x, op.Constant(value_ints=picked.tolist()), axis=axis)
    return x


def linear(
    x: Value, output_size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None
) -> Value:
    """PyTorch places the pixels by the factor it was given, which is not the ratio of the sizes: 1.7 makes 13 of 8.

    It does not where corners are aligned. PyTorch's exporter writes factors in float32, by which 30 * 2.1 is 62.
    """
    old = _sizes(x)
    sizes = output_size or [int(size * factor) for size, factor in zip(old, scale_factors or (), strict=True)]
    coordinates = "align_corners" if align_corners else "half_pixel"
    settings: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": coordinates}
    if scale_factors is None or align_corners:
        axes = list(range(2, len(x.shape)))
        return op.Resize(x, None, None, op.Constant(value_ints=list(sizes)), axes=axes, **settings)
    scales = [float(_exact_factor(*axis)) for axis in zip(old, sizes, scale_factors, strict=True)]
    return op.Resize(x, None, op.Constant(value_floats=[1.0, 1.0, *scales]), None, **settings)


def _sizes(x: Value) -> list[int]:
    """Of the axes that are resized: all but batch and channels."""
    sizes = list(x.shape)[2:]
    if not all(isinstance(size, int) for size in sizes):
        raise NotImplementedError("it resizes an axis whose size depends on the batch")
    return sizes


def _exact_factor(old: int, new: int, factor: float) -> np.float32:
    """`factor` in float32, moved by a step where its rounding would make another size: 30 * 2.1 is 62.999996."""
    scale = np.float32(factor)
    while int(scale * np.float32(old)) != new:
        scale = np.nextafter(scale, np.float32((new + 0.5) / old))
    return scale


def _picked(sizes: Sequence[int], axis: int, call: dict[str, Any]) -> Tensor:
    """Which pixels along one axis PyTorch puts into the result, by their numbers.

    Args:
        sizes: Of all axes: its functions for one and for two axes round in different ways.
        axis: Which of them.
        call: Size or factor.
    """
    line = [-1 if other == axis else 1 for other in range(len(sizes))]
    numbers = torch.arange(sizes[axis], dtype=torch.float32).view(line).expand(1, 1, *sizes)
    lines = F.interpolate(numbers, **call)[0, 0].movedim(axis, -1)
    return lines.reshape(-1, lines.shape[-1])[0].long()


def _repeats(picked: Tensor, size: int) -> bool:
    """Whether each of the pixels is picked equally often."""
    return torch.equal(picked, torch.arange(size).repeat_interleave(len(picked) // size))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.upsample_nearest1d.vec: nearest,
    torch.ops.aten.upsample_nearest2d.vec: nearest,
    torch.ops.aten.upsample_nearest3d.vec: nearest,
    torch.ops.aten.upsample_linear1d.vec: linear,
    torch.ops.aten.upsample_bilinear2d.vec: linear,
    torch.ops.aten.upsample_trilinear3d.vec: linear,
}
"""By operator."""
