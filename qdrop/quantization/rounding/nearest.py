"""Rounding to the nearest integer, anew each time: activations, and weights that learn nothing of it."""

from torch import Tensor

from qdrop.quantization.affine import fake_quantize
from qdrop.quantization.drop import Mask
from qdrop.quantization.rounding.base import Rounding


class Nearest(Rounding):
    """To the nearest; the gradient passes straight through."""

    def forward(self, x: Tensor, scale: Tensor, zero_point: Tensor, keep: Mask | None) -> Tensor:
        """See :func:`qdrop.quantization.affine.fake_quantize`."""
        return fake_quantize(x, scale, zero_point, self.qmin, self.qmax, keep)
