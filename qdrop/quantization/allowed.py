"""What a network read from a file may hold and call: layers and functions that only compute, listed one by one.

Anything else in a file is refused. None of these reads or writes files, imports or evaluates anything; attributes of
values are limited as well, so that a file cannot reach from a tensor to the rest of Python.
"""

import builtins
import math
import operator
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qdrop.quantization.quantized_module import QUANTIZED

ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "T", "mT"})
"""What `getattr` may read."""

_POINTWISE = """
    relu sigmoid tanh gelu silu mish softplus softsign hardtanh hardshrink logsigmoid exp expm1 log log1p log2 sqrt
    rsqrt square reciprocal sin cos abs neg sign floor ceil round erf clamp clamp_min clamp_max clip pow add sub
    subtract mul multiply div divide floor_divide true_divide remainder maximum minimum addcmul addcdiv where lerp
    logical_and logical_or logical_not eq ne lt le gt ge
"""
_REDUCING = "mean sum amax amin max min prod var std norm softmax log_softmax logsumexp cumsum argmax argmin any all"
_MOVING = """
    view reshape flatten unflatten permute transpose movedim squeeze unsqueeze contiguous expand expand_as repeat
    repeat_interleave chunk split tensor_split unbind narrow select index_select gather roll flip tile masked_fill
    unfold swapaxes swapdims
"""
_PRODUCTS = "matmul mm bmm baddbmm addmm einsum tensordot"
_ASKING = "size dim numel to type_as float double half bfloat16 long int bool detach clone view_as reshape_as t"
METHODS = frozenset(f"{_POINTWISE} {_REDUCING} {_MOVING} {_PRODUCTS} {_ASKING}".split())
"""Methods of tensors, by name."""

_TORCH = f"""
    {_POINTWISE} {_REDUCING} {_MOVING} {_PRODUCTS} cat concat stack zeros ones full arange linspace zeros_like ones_like
    full_like meshgrid rms_norm layer_norm group_norm adaptive_avg_pool1d channel_shuffle pixel_shuffle conv1d conv2d
    broadcast_tensors atleast_1d hstack vstack selu celu prelu rrelu
"""
_FUNCTIONAL = """
    relu relu6 leaky_relu prelu elu celu selu gelu silu mish sigmoid logsigmoid tanh hardtanh hardswish hardsigmoid
    hardshrink softshrink tanhshrink softplus softsign glu threshold softmax log_softmax softmin normalize
    layer_norm group_norm instance_norm rms_norm local_response_norm
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool2d
    pad interpolate upsample pixel_shuffle pixel_unshuffle unfold fold grid_sample affine_grid one_hot
    scaled_dot_product_attention linear conv1d conv2d
"""
_OPERATOR = """
    add sub mul truediv floordiv mod neg pos abs pow matmul getitem eq ne lt le gt ge and_ or_ xor invert not_
"""

_LAYERS = """
    Linear Bilinear Identity Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
    ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU GLU SiLU Mish Sigmoid LogSigmoid Tanh Hardtanh Hardswish
    Hardsigmoid Hardshrink Softshrink Tanhshrink Softplus Softsign Threshold Softmax Softmax2d LogSoftmax Softmin
    BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d LayerNorm GroupNorm RMSNorm
    LocalResponseNorm Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
    MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d AdaptiveAvgPool1d
    AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
    Flatten Unflatten Fold Unfold PixelShuffle PixelUnshuffle ChannelShuffle Upsample UpsamplingNearest2d
    UpsamplingBilinear2d ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d
    ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d
    CircularPad3d
"""
LAYERS = frozenset(_LAYERS.split())
"""Classes of `torch.nn`, by name."""


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    lists: list[tuple[ModuleType, str]] = [
        (torch, _TORCH),
        (F, _FUNCTIONAL),
        (operator, _OPERATOR),
        (math, "sqrt floor ceil prod log exp pow trunc"),
        (builtins, "getattr int float bool abs min max round sum"),
    ]
    found = ((home, name) for home, names in lists for name in names.split() if hasattr(home, name))
    return {f"{home.__name__}.{name}": getattr(home, name) for home, name in found}


@cache
def _names() -> dict[Any, str]:
    return {function: name for name, function in sorted(_functions().items(), reverse=True)}


def function_named(name: str) -> Callable[..., Any]:
    """The function with a name such as `torch.nn.functional.relu`.

    Raises:
        ValueError: If it is not one that a file may call.
    """
    if name not in _functions():
        raise ValueError(f"it calls the function '{name}', which is not among those a file may call")
    return _functions()[name]


def name_of_function(function: Callable[..., Any]) -> str:
    """The name by which :func:`function_named` finds `function`.

    Raises:
        ValueError: If it is not one that a file may call.
    """
    if function not in _names():
        name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__name__', function)}"
        raise ValueError(f"it calls the function '{name}', which is not among those a file may call")
    return _names()[function]


def layer_named(name: str) -> type[nn.Module]:
    """The class of `torch.nn` with that name.

    Raises:
        ValueError: If it is not one that a file may hold.
    """
    if name not in LAYERS:
        raise ValueError(f"it has a layer of type '{name}', which is not among those a file may hold")
    cls: type[nn.Module] = getattr(nn, name)
    return cls


def name_of_layer(module: nn.Module) -> str:
    """The name by which :func:`layer_named` finds the class of `module`, that of a quantized layer's float class.

    Raises:
        ValueError: If it is not one that a file may hold.
    """
    floats: dict[type[nn.Module], type[nn.Module]] = {quantized: layer for layer, quantized in QUANTIZED.items()}
    cls = floats.get(type(module), type(module))
    if cls.__name__ not in LAYERS or getattr(nn, cls.__name__) is not cls:
        name = f"{cls.__module__}.{cls.__name__}"
        raise ValueError(f"it has a layer of type '{name}', which is not among those a file may hold")
    return cls.__name__
