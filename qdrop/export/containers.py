"""The integer types of ONNX that hold a quantizer's integers."""

from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnx_ir import DataType
from torch import Tensor

from qdrop.export.options import Container
from qdrop.quantization.affine import along_channels
from qdrop.quantization.fake_quant import FakeQuantize

OPSETS = {Container.NATIVE: 25, Container.INT8: 21}
"""Version of the ONNX operators: 2-bit types came with 25; per-axis 8-bit ones run almost everywhere."""

MAX_SPREAD = 64
"""Largest integer of a weight after spreading: the sum of two products with 8-bit activations then fits the 16
bits in which processors without VNNI add them (2 * 64 * 255 < 2^15)."""

SIGNED_END = 127
"""Largest integer of a signed weight, either way."""

MAX_BIAS = 2**30
"""Largest bias in multiples of the product of the scales of input and weight: the other half of 32 bits is left to the
sum of the products."""

_UNSIGNED = {2: DataType.UINT2, 4: DataType.UINT4, 8: DataType.UINT8}
_SIGNED = {2: DataType.INT2, 4: DataType.INT4, 8: DataType.INT8}


@dataclass(frozen=True)
class Storage:
    """An integer type of ONNX."""

    width: int
    """Bits of one value: 2, 4 or 8."""
    signed: bool
    """Whether it holds negative values."""

    @property
    def type(self) -> DataType:
        """Its name in ONNX."""
        return (_SIGNED if self.signed else _UNSIGNED)[self.width]

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest value."""
        return (-(2 ** (self.width - 1)), 2 ** (self.width - 1) - 1) if self.signed else (0, 2**self.width - 1)

    def tensor(self, name: str, values: Tensor) -> ir.TensorProtocol:
        """A constant; `values`, of any integer-valued type, are packed at the type's width."""
        return ir.tensor(values.cpu().numpy().astype(self.type.numpy()), name=name)


def storage_for(quantizer: FakeQuantize, container: Container) -> Storage:
    """The type that holds the integers of `quantizer`."""
    spec = quantizer.spec
    narrowest = 2 if spec.bit == 2 else 4 if spec.bit <= 4 else 8
    return Storage(8 if container is Container.INT8 else narrowest, spec.symmetric)


def activation_storage(quantizer: FakeQuantize, container: Container) -> tuple[Storage, int]:
    """The type that holds the integers of an activation, and what is added to each of them there.

    In 8 bits signed ones are shifted to be unsigned, which changes no value: ONNX Runtime (1.32) repeats a quantizer
    behind a MaxPool or a reshape as one of unsigned integers, and refuses the file where the zero point is signed.
    """
    storage = storage_for(quantizer, container)
    if container is Container.INT8 and storage.signed:
        return Storage(storage.width, False), -storage.range[0]
    return storage, 0


@dataclass(frozen=True)
class StoredWeight:
    """A weight as integers in a type of ONNX: `weight = (integers - zero_point) * scale`."""

    storage: Storage
    integers: Tensor
    """int32, shape of the weight."""
    scale: Tensor
    """float32, `[C]`, or `[1]` for one scale."""
    zero_point: Tensor
    """int32, like `scale`."""
    ch_axis: int
    """Axis with a scale of its own per index; -1: one scale for all."""


@dataclass(frozen=True)
class BiasStep:
    """Of a weight in integer kernels: the finest scales with which biases in multiples of them fit into 32 bits."""

    finest: Tensor
    """Of each output channel `[O]`, float64; 0: any."""
    ch_axis: int
    """Axis of the weight along which output channels lie."""

    @classmethod
    def of(cls, bias: Tensor, input_scale: float, ch_axis: int) -> "BiasStep":
        """For a bias `[O]` of a layer whose input has a scale."""
        return cls(bias.detach().abs().double() / (input_scale * MAX_BIAS), ch_axis)


@torch.no_grad()
def stored_weight(
    quantizer: FakeQuantize, weight: Tensor, container: Container, bias_step: BiasStep | None = None
) -> StoredWeight:
    """A weight in its container.

    In 8 bits the integers are stored less their zero point, wherever the difference fits: integer kernels
    want signed weights without zero points. They are spread, and the scale divided, by a power of two, which
    changes no weight: ONNX Runtime rounds a bias to multiples of the product of the scales of input and weight,
    which is coarse beside 2-bit weights. Where the bias would leave 32 bits so, the scale is a coarser one.

    Args:
        quantizer: The quantizer of the weight.
        weight: The weight, in full precision.
        container: Which integer types to use.
        bias_step: What the bias asks for; None: the layer computes in floating point, or has no bias.
    """
    axis = quantizer.spec.ch_axis
    integers = quantizer.integers(weight).int() + quantizer.qmin
    scale, zero_point = quantizer.scale.detach(), torch.round(quantizer.zero_point.detach()).int()
    if container is not Container.INT8:
        return StoredWeight(storage_for(quantizer, container), integers, scale, zero_point, axis)
    centred = integers - along_channels(zero_point, integers, axis)
    largest = int(centred.abs().max())
    fits = largest <= SIGNED_END
    spread = 2 ** (max(MAX_SPREAD // max(largest, 1), 1).bit_length() - 1) if fits else 1
    centred, scale = centred * spread, scale / spread
    if bias_step is not None and axis in (-1, bias_step.ch_axis):
        given = scale.expand_as(bias_step.finest)
        centred, chosen = _no_finer(centred, given, bias_step)
        if not torch.equal(chosen, given):  # also of a weight with one scale: a huge bias is not the other channels'
            axis, scale, zero_point = bias_step.ch_axis, chosen, zero_point.expand_as(chosen)
    if fits:
        return StoredWeight(Storage(8, True), centred, scale, torch.zeros_like(zero_point), axis)
    integers = centred + along_channels(zero_point, centred, axis)
    return StoredWeight(storage_for(quantizer, container), integers, scale, zero_point, axis)


def _no_finer(centred: Tensor, scale: Tensor, bias_step: BiasStep) -> tuple[Tensor, Tensor]:
    """A weight in steps no smaller than the bias asks for: a coarser grid loses nothing beside a bias so much larger.

    Where all integers of a channel are 0, as in a dead one, its scale means nothing and becomes the finest allowed.

    Args:
        centred: Integers less their zero point, int32.
        scale: Their scales `[O]`.
        bias_step: What the bias asks for.
    """
    finest, axis = bias_step.finest, bias_step.ch_axis
    coarser = 2.0 ** torch.log2(finest / scale).ceil().clamp(min=0)
    centred = torch.round(centred / along_channels(coarser, centred, axis)).int()
    free = (centred.movedim(axis, 0).flatten(1) == 0).all(1) & (finest > 0)
    return centred, torch.where(free, finest, scale * coarser).to(scale.dtype)
