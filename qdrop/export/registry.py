"""Which ONNX each operation of a network becomes.

A new function gets a handler beside its like in `pointwise`, `pooling`, `moving` or `resizing`, a new module a
line in `MODULES`. Operations that only give values another shape need no handler, see `RESHAPES`.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from qdrop.export import moving, pointwise, pooling, resizing

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **pointwise.HANDLERS, **pooling.HANDLERS, **moving.HANDLERS, **resizing.HANDLERS,
}  # fmt: skip
"""By the plain name of the PyTorch function or method (see `qdrop.quantization.ops.operation`)."""

RESHAPES = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"}
"""Their result's shape says all."""
NOTHING = {"contiguous", "clone", "detach"}
"""Give back what they take."""

UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardswish": "HardSwish",
    "softsign": "Softsign", "mish": "Mish", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg",
    "reciprocal": "Reciprocal", "erf": "Erf", "selu": "Selu",
}  # fmt: skip
"""Functions without settings: the operator alone. One that has any needs a handler, which checks them."""

MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("relu6", ()),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.PReLU: ("prelu", ("weight",)),
    nn.ELU: ("elu", ("alpha",)),
    nn.SELU: ("selu", ()),
    nn.GELU: ("gelu", ("approximate",)),
    nn.SiLU: ("silu", ()),
    nn.Mish: ("mish", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Tanh: ("tanh", ()),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Softsign: ("softsign", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Softmax: ("softmax", ("dim",)),
    nn.LayerNorm: ("layer_norm", ("normalized_shape", "weight", "bias", "eps")),
    nn.MaxPool2d: ("max_pool2d", ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")),
    nn.AvgPool2d: (
        "avg_pool2d",
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", ("output_size", "return_indices")),
    nn.ConstantPad2d: ("constant_pad_nd", ("padding", "value")),
    nn.ZeroPad2d: ("constant_pad_nd", ("padding", "value")),
    nn.Flatten: ("flatten", ()),
    nn.Unflatten: ("unflatten", ()),
    nn.ChannelShuffle: ("channel_shuffle", ("groups",)),
    nn.PixelShuffle: ("pixel_shuffle", ("upscale_factor",)),
    nn.Upsample: ("interpolate", ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")),
}
"""Module type -> the function that computes the same, and the attributes that are its arguments."""


def supported() -> str:
    """The operations that can be written, for messages."""
    return ", ".join(sorted({*FUNCTIONS, *UNARY, *RESHAPES, *NOTHING, "conv2d", "conv1d", "linear"}))
