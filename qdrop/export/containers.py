"""The integer types of ONNX that hold a quantizer's integers."""

from dataclasses import dataclass

import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from qdrop.export.options import Container
from qdrop.quantization.affine import along_channels
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.quantized_module import QuantizedModule

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

_UNSIGNED = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}
_SIGNED = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}


@dataclass(frozen=True)
class Storage:
    """An integer type of ONNX."""

    width: int
    """Bits of one value: 2, 4 or 8."""
    signed: bool
    """Whether it holds negative values."""

    @property
    def type(self) -> int:
        """Its number in `onnx.TensorProto`."""
        return (_SIGNED if self.signed else _UNSIGNED)[self.width]

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest value."""
        return (-(2 ** (self.width - 1)), 2 ** (self.width - 1) - 1) if self.signed else (0, 2**self.width - 1)

    def tensor(self, name: str, values: Tensor) -> TensorProto:
        """An initialiser; `values`, of any integer-valued type, are packed at the type's width."""
        integers = values.cpu().numpy().astype(helper.tensor_dtype_to_np_dtype(self.type))
        return numpy_helper.from_array(integers, name)


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


@torch.no_grad()
def stored_weight(layer: QuantizedModule, container: Container, input_scale: float | None = None) -> StoredWeight:
    """The weight of a layer in its container.

    In 8 bits the integers are stored less their zero point, wherever the difference fits: integer kernels
    want signed weights without zero points. They are spread, and the scale divided, by a power of two, which
    changes no weight: ONNX Runtime rounds a bias to multiples of the product of the scales of input and weight,
    which is coarse beside 2-bit weights. Where the bias would leave 32 bits so, the scale is a coarser one.

    Args:
        layer: A layer whose weight is on its grid.
        container: Which integer types to use.
        input_scale: Scale of the quantizer that the layer reads from; None: it computes in floating point.
    """
    quantizer = layer.weight_quantizer
    integers, axis = layer.integers().int() + quantizer.qmin, quantizer.spec.ch_axis
    scale, zero_point = quantizer.scale.detach(), torch.round(quantizer.zero_point.detach()).int()
    if container is not Container.INT8:
        return StoredWeight(storage_for(quantizer, container), integers, scale, zero_point, axis)
    centred = integers - along_channels(zero_point, integers, axis)
    largest = int(centred.abs().max())
    fits = largest <= SIGNED_END
    spread = 2 ** (max(MAX_SPREAD // max(largest, 1), 1).bit_length() - 1) if fits else 1
    centred, scale = centred * spread, scale / spread
    if input_scale is not None and isinstance(layer.bias, Tensor):
        finest = layer.bias.detach().abs().double() / (input_scale * MAX_BIAS)
        given = scale.expand_as(finest)
        centred, chosen = _no_finer(centred, given, finest)
        if not torch.equal(chosen, given):  # also of a weight with one scale: a huge bias is not the other channels'
            axis, scale, zero_point = 0, chosen, zero_point.expand_as(finest)
    if fits:
        return StoredWeight(Storage(8, True), centred, scale, torch.zeros_like(zero_point), axis)
    integers = centred + along_channels(zero_point, centred, axis)
    return StoredWeight(storage_for(quantizer, container), integers, scale, zero_point, axis)


def _no_finer(centred: Tensor, scale: Tensor, finest: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in steps no smaller than `finest`: a coarser grid loses nothing beside a bias so much larger.

    Where all integers of a channel are 0, as in a dead one, its scale means nothing and becomes `finest` itself.

    Args:
        centred: Integers less their zero point `[O, ...]`, int32.
        scale: Their scales `[O]`.
        finest: The finest step of each output channel `[O]`, float64; 0: any.
    """
    coarser = 2.0 ** torch.log2(finest / scale).ceil().clamp(min=0)
    centred = torch.round(centred / along_channels(coarser, centred, 0)).int()
    free = (centred == 0).flatten(1).all(1) & (finest > 0)
    return centred, torch.where(free, finest, scale * coarser).to(scale.dtype)
