"""Quantizers and weighted layers in ONNX: QuantizeLinear, DequantizeLinear and what stands between them."""

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from qdrop.export.containers import Storage, activation_storage, stored_weight
from qdrop.export.emitter import Emitter, Value
from qdrop.export.options import Container
from qdrop.quantization.affine import MIN_SCALE
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.ops import module_of, operation
from qdrop.quantization.quantized_module import QuantizedModule

Bounds = tuple[float | None, float | None]


def quantize(e: Emitter, quantizer: FakeQuantize, x: Value, bounds: Bounds) -> str:
    """`x`, clipped to `bounds`, rounded to the grid of an activation quantizer.

    QuantizeLinear computes `saturate(round(x/s) + z)` with ties to even, as the quantizer does, and saturates
    at the ends of its type. Where the quantizer's integers end before those of the type, they are clipped.
    Rounding is monotone, so that the bounds of a function such as ReLU6 before it are integers as well.

    Args:
        e: Where to write.
        quantizer: An active quantizer of an activation.
        x: What it reads.
        bounds: Smallest and largest value, of a function between `x` and the quantizer that only clips.
    """
    spec = quantizer.spec
    storage, shift = activation_storage(quantizer, e.graph.container)
    axis, shape = ({}, ()) if spec.ch_axis == -1 else ({"axis": spec.ch_axis}, (-1,))
    scale, zero_point = quantizer.scale.detach(), torch.round(quantizer.zero_point.detach()) + shift
    low, high = (end + shift for end in _integer_bounds(quantizer, bounds))
    grid = e.constant(scale.reshape(shape)), _integers(e, storage, zero_point.reshape(shape))
    integers = e.add("QuantizeLinear", x, *grid, **axis)
    if e.graph.container is Container.INT8:
        values = e.add("DequantizeLinear", _clip_integers(e, storage, integers, low, high), *grid, **axis)
        # Of a tensor of zeros: multiples of this scale mean nothing, and a bias would be rounded to them.
        return e.unfused(values) if (scale <= MIN_SCALE).any() else values
    broadcast = (-1, *[1] * (len(x.shape) - spec.ch_axis - 1)) if axis else ()
    lowest, highest = (((end - zero_point) * scale).reshape(broadcast) for end in (low, high))
    values = e.add("DequantizeLinear", integers, *grid, **axis)
    return _clip_values(e, values, lowest if low > storage.range[0] else None, highest)


def _clip_integers(e: Emitter, storage: Storage, integers: str, low: int, high: int) -> str:
    """Clip between QuantizeLinear and DequantizeLinear, each of which stays beside the layer it fuses with."""
    if storage.range == (low, high):
        return integers
    return e.add("Clip", integers, *(_integers(e, storage, torch.tensor(end)) for end in (low, high)))


def _clip_values(e: Emitter, values: str, low: Tensor | None, high: Tensor) -> str:
    """Clip behind DequantizeLinear, where it also clips types that ONNX has no integer Clip for.

    The upper one is always written: it keeps ONNX Runtime (1.32) from fusing the DequantizeLinear with what
    follows, for which it has no kernel in these types. A float Clip operator it would fuse too, and fail.
    """
    upper = e.add("Min", values, e.constant(high))
    return upper if low is None else e.add("Max", upper, e.constant(low))


def _integer_bounds(quantizer: FakeQuantize, bounds: Bounds) -> tuple[int, int]:
    """The smallest and largest integer that values within `bounds` are rounded to."""
    ends = [quantizer.qmin, quantizer.qmax]
    for i, bound in enumerate(bounds):
        if bound is not None:
            steps = torch.round(torch.tensor(bound) / quantizer.scale.detach()) + torch.round(quantizer.zero_point)
            ends[i] = int(steps.clamp(quantizer.qmin, quantizer.qmax))
    return ends[0], ends[1]


def _integers(e: Emitter, storage: Storage, values: Tensor) -> str:
    kind = f"{'int' if storage.signed else 'uint'}{storage.width}"
    if values.numel() > 16:
        return e.initializer(storage.tensor(f"{e.node.name}/{kind}", values))
    return e.initializer(storage.tensor(f"{kind}{list(values.shape)}={values.int().reshape(-1).tolist()}", values))


def clip_bounds(node: fx.Node) -> Bounds | None:
    """The bounds of a function that only clips, where both are known numbers; else None."""
    module, name = module_of(node), operation(node)
    if type(module) is nn.ReLU or name == "relu":
        return 0.0, None
    if type(module) is nn.ReLU6 or name == "relu6":
        return 0.0, 6.0
    if type(module) is nn.Hardtanh:
        return float(module.min_val), float(module.max_val)
    return None


def weight_of(e: Emitter, layer: nn.Module, x: Value) -> str:
    """The weight of a layer that reads `x`: float32, or integers and their DequantizeLinear."""
    weight = layer.get_parameter("weight").detach()
    name = f"{e.node.target}.weight"
    if not isinstance(layer, QuantizedModule) or not layer.weight_quantizer.active:
        return e.initializer(numpy_helper.from_array(np.asarray(weight.cpu()), name))
    stored = stored_weight(layer, e.graph.container, e.graph.scale_of(x))
    settings = {} if stored.ch_axis == -1 else {"axis": stored.ch_axis}
    shape = (-1,) if settings else ()
    return e.add(
        "DequantizeLinear",
        e.initializer(stored.storage.tensor(name, stored.integers)),
        e.constant(stored.scale.reshape(shape)),
        _integers(e, stored.storage, stored.zero_point.reshape(shape)),
        **settings,
    )


def convolution(e: Emitter, layer: nn.Conv1d | nn.Conv2d, x: Value) -> str:
    """A convolution over one or two axes."""
    if layer.padding_mode != "zeros":
        raise e.error(f"has padding_mode={layer.padding_mode}, and only zeros is supported")
    pads = list(layer._reversed_padding_repeated_twice)  # innermost axis first: before, after
    before, after = pads[0::2][::-1], pads[1::2][::-1]
    bias = [] if layer.bias is None else [e.constant(layer.bias)]
    return e.add(
        "Conv",
        x,
        weight_of(e, layer, x),
        *bias,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=before + after,
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def linear(e: Emitter, layer: nn.Linear, x: Value) -> str:
    """A fully connected layer on `[..., I]`.

    Always a Gemm, on rows of tokens too: ONNX Runtime (1.32) fuses a MatMul with packed weights into an operator that
    quantizes the activations once more, and that computes something else where 2-bit rows do not fill whole bytes.
    """
    bias = [] if layer.bias is None else [e.constant(layer.bias)]
    rows = x if len(x.shape) == 2 else e.reshaped(x, (None, layer.in_features))
    product = e.add("Gemm", rows, weight_of(e, layer, x), *bias, transB=1)
    return product if len(x.shape) == 2 else e.reshaped(product)
