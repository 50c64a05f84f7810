"""Pointwise functions, arithmetic and norms in ONNX: handlers with the arguments of the PyTorch functions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qdrop.export.emitter import Emitter, Value

Handler = Callable[..., Any]

FAR = 2**12
"""Times one scale from which on a sum in float32, times an 8-bit zero point, no longer holds steps of the other."""


def _relu6(e: Emitter, input: Value) -> str:
    return _clamp(e, input, 0.0, 6.0)


def _hardtanh(e: Emitter, input: Value, min_val: float = -1.0, max_val: float = 1.0) -> str:
    return _clamp(e, input, min_val, max_val)


def _clamp(e: Emitter, input: Value, min: Any = None, max: Any = None) -> str:
    """Clip takes numbers alone; tensors are broadcast by Max and Min, of which the upper bound has the last word."""
    if all(bound is None or isinstance(bound, int | float) for bound in (min, max)):
        low, high = ("" if bound is None else e.operand(bound) for bound in (min, max))
        return e.add("Clip", input, low, high)
    raised = input.name if min is None else e.add("Max", input, e.operand(min))
    return raised if max is None else e.add("Min", raised, e.operand(max))


def _clamp_min(e: Emitter, input: Value, min: Any) -> str:
    return _clamp(e, input, min)


def _silu(e: Emitter, input: Value) -> str:
    return e.add("Mul", input, e.add("Sigmoid", input))


def _hardsigmoid(e: Emitter, input: Value) -> str:
    return e.add("HardSigmoid", input, alpha=1 / 6, beta=0.5)


def _leaky_relu(e: Emitter, input: Value, negative_slope: float = 0.01) -> str:
    return e.add("LeakyRelu", input, alpha=float(negative_slope))


def _elu(e: Emitter, input: Value, alpha: float = 1.0) -> str:
    return e.add("Elu", input, alpha=float(alpha))


def _prelu(e: Emitter, input: Value, weight: Any) -> str:
    """The slopes, one per channel or one for all, are a module's parameter or a value of the graph."""
    ones = [1] * (len(input.shape) - 2)
    if isinstance(weight, Value):
        return e.add("PRelu", input, e.reshaped(weight, (None, *ones)))
    return e.add("PRelu", input, e.constant(weight.reshape(-1, *ones)))


def _gelu(e: Emitter, input: Value, approximate: str = "none") -> str:
    return e.add("Gelu", input, approximate=approximate)


def _softplus(e: Emitter, input: Value, beta: float = 1.0, threshold: float = 20.0) -> str:
    """PyTorch is linear above the threshold, ONNX nowhere: from 20 on, float32 holds the same values."""
    if beta != 1 or threshold < 20:
        raise e.error(f"has beta={beta}, threshold={threshold}; supported are beta=1 and thresholds from 20 on")
    return e.add("Softplus", input)


# Arithmetic


def _add(e: Emitter, input: Any, other: Any, alpha: float = 1) -> str:
    """In integers ONNX Runtime (1.32) adds what two zero points stand for, in float32, however far apart they are."""
    first = e.operand(input)
    scaled = e.operand(other) if alpha == 1 else e.add("Mul", e.operand(other), e.operand(alpha))
    scales = [e.graph.scale_of(value) for value in (input, other) if isinstance(value, Value)]
    steps = [scale for scale in scales if scale is not None]
    far = len(steps) == 2 and max(steps) > FAR * min(steps)
    return e.add("Add", e.unfused(first) if far else first, scaled)


def _sub(e: Emitter, input: Any, other: Any, alpha: float = 1) -> str:
    scaled = e.operand(other) if alpha == 1 else e.add("Mul", e.operand(other), e.operand(alpha))
    return e.add("Sub", e.operand(input), scaled)


def _mul(e: Emitter, input: Any, other: Any) -> str:
    return e.add("Mul", e.operand(input), e.operand(other))


def _div(e: Emitter, input: Any, other: Any, rounding_mode: str | None = None) -> str:
    if rounding_mode is not None:
        raise e.error(f"has rounding_mode={rounding_mode}, and only None is supported")
    return e.add("Div", e.operand(input), e.operand(other))


def _power(e: Emitter, input: Any, exponent: Any) -> str:
    return e.add("Pow", e.operand(input), e.operand(exponent))


def _square(e: Emitter, input: Value) -> str:
    return e.add("Mul", input, input)


def _matmul(e: Emitter, input: Value, other: Value) -> str:
    return e.add("MatMul", input, other)


def _softmax(e: Emitter, input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> str:
    """Without an axis PyTorch takes the second, but of three axes, as of one, the first."""
    if dim is None:
        dim = 0 if len(input.shape) in (1, 3) else 1
    if input.shape[dim] is None:
        raise e.error("is a softmax over the batch")
    return e.add("Softmax", input, axis=dim)


def _layer_norm(
    e: Emitter, input: Value, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> str:
    scale = e.constant(np.ones(normalized_shape)) if weight is None else e.operand(weight)
    shift = [] if bias is None else [e.operand(bias)]
    return e.add("LayerNormalization", input, scale, *shift, axis=-len(normalized_shape), epsilon=float(eps))


HANDLERS: dict[str, Handler] = {
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "silu": _silu,
    "hardsigmoid": _hardsigmoid,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "prelu": _prelu,
    "gelu": _gelu,
    "softplus": _softplus,
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "mul": _mul,
    "multiply": _mul,
    "truediv": _div,
    "div": _div,
    "divide": _div,
    "pow": _power,
    "square": _square,
    "matmul": _matmul,
    "bmm": _matmul,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
}
"""By the plain name of the PyTorch function or method; see `qdrop.quantization.ops.operation`."""
