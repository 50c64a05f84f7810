"""What moves, joins and cuts values, in ONNX: handlers with the arguments of the PyTorch functions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qdrop.export.emitter import Emitter, Value

Handler = Callable[..., Any]


def _permute(e: Emitter, input: Value, *dims: Any) -> str:
    order = dims[0] if isinstance(dims[0], Sequence) else dims
    return e.add("Transpose", input, perm=[axis % len(input.shape) for axis in order])


def _transpose(e: Emitter, input: Value, dim0: int, dim1: int) -> str:
    order = list(range(len(input.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return e.add("Transpose", input, perm=order)


def _cat(e: Emitter, tensors: Sequence[Value], dim: int = 0) -> str:
    return e.add("Concat", *(e.operand(tensor) for tensor in tensors), axis=dim)


def _split(e: Emitter, tensor: Value, *sizes: Any, dim: int = 0, **settings: Any) -> tuple[str, ...]:
    """Parts as long as those that PyTorch made; a second positional argument is the axis."""
    axis = (sizes[1] if len(sizes) > 1 else dim) % len(tensor.shape)
    lengths = [part[axis] for part in e.shape]
    if None in lengths:
        raise e.error("splits the batch")
    first = e.add("Split", tensor, e.constant(lengths, np.int64), outputs=len(lengths), axis=axis)
    return tuple(e.part(first, i) for i in range(len(lengths)))


def _getitem(e: Emitter, input: Any, index: Any) -> Any:
    """One or some of several tensors, or part of one: slices, numbers, None and `...`."""
    if isinstance(input, tuple):
        picked = input[index]
        return tuple(part.name for part in picked) if isinstance(picked, tuple) else picked.name
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not (item is None or item is Ellipsis or isinstance(item, int | slice)) for item in items):
        raise e.error(f"takes {items}, and only slices and numbers are supported")
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(input.shape) - taken)
    cuts = [_cut(item) for item in items if item is not None]
    cut = [(axis, *c) for axis, c in enumerate(cuts) if c is not None]
    name = input.name
    if cut:
        axes, starts, ends, steps = (e.constant(list(column), np.int64) for column in zip(*cut, strict=True))
        name = e.add("Slice", name, starts, ends, axes, steps)
    same = all(isinstance(item, slice) for item in items)
    return name if same and cut else e.reshaped(name)


def _cut(item: int | slice) -> tuple[int, int, int] | None:
    """Start, end and step of one axis; None: all of it."""
    last = np.iinfo(np.int64).max
    if isinstance(item, int):
        return item, last if item == -1 else item + 1, 1
    if item == slice(None):
        return None
    return item.start or 0, last if item.stop is None else item.stop, item.step or 1


def _pad(e: Emitter, input: Value, pad: Any, mode: str = "constant", value: float | None = None) -> str:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    pads = list(pad) + [0] * (2 * len(input.shape) - len(pad))  # innermost axis first
    before, after = pads[0::2][::-1], pads[1::2][::-1]
    fill = [e.operand(value or 0.0)] if mode == "constant" else []
    return e.add("Pad", input, e.constant(before + after, np.int64), *fill, mode=modes[mode])


def _constant_pad_nd(e: Emitter, input: Value, padding: Any, value: float = 0) -> str:
    return _pad(e, input, padding, value=value)


def _channel_shuffle(e: Emitter, input: Value, groups: int) -> str:
    batch, channels, *rest = input.shape
    if channels is None:
        raise e.error("shuffles channels whose number depends on the batch")
    grouped = e.reshaped(input, (batch, groups, channels // groups, *rest))
    swapped = e.add("Transpose", grouped, perm=[0, 2, 1, *range(3, len(rest) + 3)])
    return e.reshaped(swapped)


def _pixel_shuffle(e: Emitter, input: Value, upscale_factor: int) -> str:
    return e.add("DepthToSpace", input, blocksize=upscale_factor, mode="CRD")


HANDLERS: dict[str, Handler] = {
    "permute": _permute,
    "transpose": _transpose,
    "cat": _cat,
    "concat": _cat,
    "chunk": _split,
    "split": _split,
    "tensor_split": _split,
    "getitem": _getitem,
    "pad": _pad,
    "constant_pad_nd": _constant_pad_nd,
    "channel_shuffle": _channel_shuffle,
    "pixel_shuffle": _pixel_shuffle,
}
"""By the plain name of the PyTorch function or method; see `qdrop.quantization.ops.operation`."""
