"""Resizing in ONNX: `interpolate` with the arguments of the PyTorch function."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qdrop.export.emitter import Emitter, Value
from qdrop.export.facts import Shape

Handler = Callable[..., Any]


def _interpolate(
    e: Emitter,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> str:
    """PyTorch places the pixels by the factor it was given, which is not the ratio of the sizes: 1.7 makes 13 of 8.

    It does not where it is told to compute the factor again, and never where corners are aligned.
    """
    if mode not in ("nearest", "bilinear") or antialias:
        raise e.error(f"has mode={mode}, antialias={antialias}, and only nearest, bilinear are supported")
    old, new = _sizes(e, input.shape), _sizes(e, e.shape)
    given = scale_factor is not None and not recompute_scale_factor and not align_corners
    if mode == "nearest":
        return _nearest(e, input, old, {"scale_factor": scale_factor} if given else {"size": new})
    coordinates = "align_corners" if align_corners else "half_pixel"
    settings: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": coordinates}
    if not given:
        axes = list(range(2, len(input.shape)))
        return e.add("Resize", input, "", "", e.constant(new, np.int64), axes=axes, **settings)
    factors = scale_factor if isinstance(scale_factor, Sequence) else [scale_factor] * len(old)
    scales = [_exact_factor(*axis) for axis in zip(old, new, factors, strict=True)]
    return e.add("Resize", input, "", e.constant([1.0, 1.0, *scales]), **settings)


def _sizes(e: Emitter, shape: Shape) -> list[int]:
    """Of the axes that are resized: all but batch and channels."""
    sizes = [size for size in shape[2:] if size is not None]
    if len(sizes) < len(shape) - 2:
        raise e.error("resizes an axis whose size depends on the batch")
    return sizes


def _exact_factor(old: int, new: int, factor: float) -> np.float32:
    """`factor` in float32, moved by a step where its rounding would make another size: 30 * 2.1 is 62.999996."""
    scale = np.float32(factor)
    while int(scale * np.float32(old)) != new:
        scale = np.nextafter(scale, np.float32((new + 0.5) / old))
    return scale


def _nearest(e: Emitter, input: Value, old: Sequence[int], call: dict[str, Any]) -> str:
    """Whole factors by Resize; else the pixels that PyTorch picks, by their numbers.

    Resize finds them by a division where PyTorch multiplies: at a whole number, rounding alone decides which of
    two pixels it is. They differ in one of thirty pairs of sizes.
    """
    picks = [_picked(old, axis, call) for axis in range(len(old))]
    if all(_repeats(picked, size) for picked, size in zip(picks, old, strict=True)):
        scales = [1.0, 1.0, *(len(picked) / size for picked, size in zip(picks, old, strict=True))]
        rule: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return e.add("Resize", input, "", e.constant(scales), mode="nearest", **rule)
    name = input.name
    for axis, picked in enumerate(picks, start=2):
        name = e.add("Gather", name, e.constant(picked, np.int64), axis=axis)
    return name


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


HANDLERS: dict[str, Handler] = {"interpolate": _interpolate}
"""By the plain name of the PyTorch function or method; see `qdrop.quantization.ops.operation`."""
