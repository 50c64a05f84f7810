"""Learned rounding of weights by division (Lee et al., *FlexRound*, ICML 2023).

`s1 * (clamp(round(w / (s1 * S2 * s3 * s4)) + z) - z)` (eq. 2): each element is divided by a factor of its own, `S2`,
one of its output channel, `s3`, and, in a convolution, one of its input channel, `s4`. All start at 1 and stay
positive, as their logarithms are what is learned; `s1` is the scale of the grid, which learns too. A large weight moves
further for the same change of its factor, so that it may leave its neighbouring integers. The gradient passes `round`
straight.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qdrop.quantization.drop import Mask
from qdrop.quantization.rounding.base import HeldRounding
from qdrop.quantization.spec import QuantizerSpec


class FlexRound(HeldRounding):
    """Learns what each element of a weight is divided by before it is rounded to the nearest."""

    def __init__(self, spec: QuantizerSpec) -> None:
        super().__init__(spec)
        self.is_learning = False
        output = max(spec.ch_axis, 0)
        shapes = [spec.shape, _along(output, spec.shape)]
        if len(spec.shape) > 2:
            shapes.append(_along(1 - output, spec.shape))
        self.logarithms = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)

    def divided(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """The weight in steps of the grid, not yet rounded nor clamped: float, differentiable."""
        factor = torch.stack([part.expand(weight.shape) for part in self.logarithms]).sum(0).exp()
        return weight / (scale * factor) + zero_point

    def forward(self, x: Tensor, scale: Tensor, zero_point: Tensor, keep: Mask | None) -> Tensor:
        """The weight from its integers, or, while learning, from itself; `keep` is not used."""
        if not self.is_learning:
            return super().forward(x, scale, zero_point, keep)
        steps = self.divided(x, scale, zero_point)
        rounded = steps + (steps.round() - steps).detach()
        return scale * (rounded.clamp(self.qmin, self.qmax) - zero_point)

    @contextmanager
    def learning(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> Iterator[None]:
        """See :meth:`Rounding.learning`."""
        before, self.is_learning = self.is_learning, True
        try:
            yield
        finally:
            self.is_learning = before

    @torch.no_grad()
    def harden(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> float:
        """See :meth:`Rounding.harden`."""
        return self.hold(self.divided(weight, scale, zero_point).round())


def _along(axis: int, shape: tuple[int, ...]) -> list[int]:
    """A shape with one factor for each index of an axis, which broadcasts to `shape`."""
    return [size if index == axis else 1 for index, size in enumerate(shape)]
