"""Layers whose weight passes through a quantizer; the weight itself is shared with the float layer."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdrop.quantization.affine import along_channels
from qdrop.quantization.fake_quant import AdaRoundFakeQuantize, FakeQuantize

FLOATS_OF_A_REGISTER = 8
"""Of AVX2."""


class QuantizedModule(nn.Module):
    """A weighted layer with a quantizer for its weight; mixed into one class per layer type."""

    weight: Tensor
    weight_quantizer: FakeQuantize

    @classmethod
    def from_float(cls, layer: nn.Module, weight_quantizer: FakeQuantize) -> Self:
        """The quantized twin of `layer`: same parameters (shared, not copied), same settings."""
        twin = cls.__new__(cls)
        twin.__dict__ = {**layer.__dict__, "_modules": dict(layer._modules)}
        twin.weight_quantizer = weight_quantizer
        return twin

    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it now: as it is, or rounded to its grid."""
        return self.weight_quantizer(self.weight)

    @torch.no_grad()
    def integers(self) -> Tensor:
        """The weight's integers, as steps above the smallest one, uint8, shape of the weight.

        They are read off the rounded weight, so they are the same thing for every kind of quantizer.

        Raises:
            ValueError: If integers, scale and zero point do not give the rounded weight back, bit for bit.
        """
        quantizer = self.weight_quantizer
        weight = quantizer.quantize(self.weight, None)
        grid = (quantizer.scale, quantizer.zero_point.round())
        scale, zero_point = (along_channels(v, weight, quantizer.spec.ch_axis) for v in grid)
        steps = (torch.round(weight / scale) + zero_point - quantizer.qmin).to(torch.uint8)
        if not torch.equal((steps + (quantizer.qmin - zero_point)) * scale, weight):
            raise ValueError(f"{quantizer.spec.name}: the weight is not on its grid; calibrate the network first")
        return steps

    def calibrate_weight(self) -> None:
        """Set the range of the weight's quantizer from the weight, and its integers to the nearest."""
        observer = self.weight_quantizer.new_observer()
        observer.observe(self.weight)
        self.weight_quantizer.set_range(*observer.range())
        if isinstance(self.weight_quantizer, AdaRoundFakeQuantize):
            self.weight_quantizer.round_to_nearest(self.weight)

    def settle(self) -> float:
        """Harden the rounding learned for the weight; the share of weights, 0 to 1, not at the nearest."""
        if isinstance(self.weight_quantizer, AdaRoundFakeQuantize):
            return self.weight_quantizer.settle(self.weight)
        return 0.0


class QConv2d(QuantizedModule, nn.Conv2d):
    """A convolution with a quantized weight `[O, I/groups, kH, kW]`."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] -> [N, O, H', W']."""
        weight = self.quantized_weight()
        if self._skips_pixels_of_few_channels() and (weight.requires_grad or x.requires_grad):
            return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], weight, self.bias)
        return self._conv_forward(x, weight, self.bias)

    def _skips_pixels_of_few_channels(self) -> bool:
        """Whether oneDNN must not be asked for a gradient: it skips the pixels itself, and does so wrongly.

        On a CPU without AVX-512, with channels last and less than a register of them, it writes beyond its memory
        (version 3.13, in torch 2.15).
        """
        pointwise = self.kernel_size == (1, 1) and self.padding in ((0, 0), "valid") and self.groups == 1
        return pointwise and self.stride != (1, 1) and self.in_channels < FLOATS_OF_A_REGISTER


class QConv1d(QuantizedModule, nn.Conv1d):
    """A 1-D convolution with a quantized weight `[O, I/groups, k]`."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, L] -> [N, O, L']."""
        return self._conv_forward(x, self.quantized_weight(), self.bias)


class QLinear(QuantizedModule, nn.Linear):
    """A fully connected layer with a quantized weight `[O, I]`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return F.linear(x, self.quantized_weight(), self.bias)


QUANTIZED: dict[type[nn.Module], type[QuantizedModule]] = {
    nn.Conv2d: QConv2d,
    nn.Conv1d: QConv1d,
    nn.Linear: QLinear,
}
"""Float layer type -> quantized layer type. Register a type here and plans will quantize it."""


def float_type(module: nn.Module) -> type[nn.Module] | None:
    """The registered layer type that `module` computes as, or None.

    A subclass counts only if it did not change the computation (`forward`), and holds its weight as it is.
    """
    for layer in QUANTIZED:
        if isinstance(module, layer) and type(module).forward is layer.forward:
            return layer if "weight" in module._parameters else None
    return None
