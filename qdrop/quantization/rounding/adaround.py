"""Learned rounding of weights: between down and up while it is learned (Nagel et al., *AdaRound*, ICML 2020).

`h(alpha) = clamp(1.2 * sigmoid(alpha) - 0.1, 0, 1)` (eq. 23) is 0 where a weight rounds down and 1 where it rounds up.
Each function works out its derivative for `alpha` beside its value, in one pass over memory: a layer of many weights
and few pixels otherwise takes as long for its rounding as for its convolution.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from qdrop.quantization.blocks import in_blocks
from qdrop.quantization.rounding.base import LearnedRounding
from qdrop.quantization.spec import QuantizerSpec

STRETCH = 1.2
"""Width of the stretched sigmoid that relaxes rounding."""
SHIFT = -0.1
"""Its lower end, so that 0 and 1 are reached and not only approached."""
_SMALLEST = 1e-30
"""Instead of 0 in a logarithm: far from any other distance between a rounding and the middle."""


class AdaRound(LearnedRounding):
    """Learns whether each element of a weight rounds down or up."""

    def __init__(self, spec: QuantizerSpec) -> None:
        super().__init__(spec)
        self.alpha = nn.Parameter(torch.zeros(spec.shape))

    @torch.no_grad()
    def prepare(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        """Set the integers to the nearest ones, and `alpha` so that `h(alpha)` is the fraction of w/s."""
        super().prepare(weight, scale, zero_point)
        steps = weight / scale
        self.alpha.copy_(alpha_of(steps - torch.floor(steps)))

    def begin(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """The integers of rounding down, not clamped."""
        return torch.floor(weight / scale) + zero_point

    def soft(self, start: Tensor) -> Tensor:
        """Up by `h(alpha)`."""
        return soft_levels(self.alpha, start, self.qmin, self.qmax)

    def hard(self, start: Tensor) -> Tensor:
        """Up where `alpha >= 0`, else down."""
        return start + (self.alpha >= 0)

    def regularizer(self, beta: Tensor) -> Tensor:
        """:func:`undecided` roundings."""
        return undecided(self.alpha, beta)


def alpha_of(fraction: Tensor) -> Tensor:
    """The `alpha` for which `h(alpha)` is this, 0 to 1; any shape."""
    return -torch.log(STRETCH / (fraction - SHIFT) - 1)


def soft_levels(alpha: Tensor, floor: Tensor, qmin: int, qmax: int) -> Tensor:
    """`clamp(floor + h(alpha), qmin, qmax)`: the integers of a weight, softly rounded.

    Args:
        alpha: What the rounding is learned by, in the weight's shape.
        floor: The integers of rounding down, same shape, not clamped; carries no gradient.
        qmin: Smallest integer.
        qmax: Largest integer.

    Returns:
        Float, same shape.
    """
    return cast(Tensor, _SoftLevels.apply(alpha, floor, qmin, qmax))


def undecided(alpha: Tensor, beta: Tensor) -> Tensor:
    """`sum(1 - abs(2 * h(alpha) - 1) ** beta)` (AdaRound, eq. 24): how far roundings are from 0 and 1.

    Args:
        alpha: As for :func:`soft_levels`.
        beta: Exponent, a scalar, at least 1; carries no gradient.

    Returns:
        A scalar, from 0 to the number of weights.
    """
    return cast(Tensor, _Undecided.apply(alpha, beta))


class _SoftLevels(torch.autograd.Function):
    """Keeps the derivative for `alpha`: 0 where either clamp is at work."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, floor: Tensor, qmin: int, qmax: int) -> Tensor:
        def work(alpha: Tensor, floor: Tensor, level: Tensor, slope: Tensor) -> None:
            rounding = _soft_rounding(alpha, slope).add_(floor)
            torch.clamp(rounding, qmin, qmax, out=level)
            slope.mul_(rounding.eq_(level))

        level, slope = in_blocks(work, 2, alpha, floor)
        ctx.save_for_backward(slope)
        return level

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None, None


class _Undecided(torch.autograd.Function):
    """Keeps the derivative for `alpha`, to be multiplied by the one number that comes back."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, beta: Tensor) -> Tensor:
        def work(alpha: Tensor, term: Tensor, slope: Tensor) -> None:
            distance = _soft_rounding(alpha, slope).mul_(2).sub_(1)  # from the middle, -1 to 1
            size = torch.abs(distance, out=term)
            # One power gives value and derivative; by logarithm it costs a third of `pow`, to the same digits.
            power = size.clamp(min=_SMALLEST).log_().mul_(beta - 1).exp_()
            slope.mul_(torch.copysign(power, distance)).mul_(-2 * beta)
            size.mul_(power).neg_().add_(1)

        term, slope = in_blocks(work, 2, alpha)
        ctx.save_for_backward(slope)
        return term.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


def _soft_rounding(alpha: Tensor, slope: Tensor) -> Tensor:
    """`h(alpha)`, and its derivative into `slope`."""
    sigmoid = torch.sigmoid(alpha)
    stretched = sigmoid * STRETCH + SHIFT
    rounding = stretched.clamp(0, 1)
    # The last factor is 1 where the clamp changes nothing, its ends included, else 0.
    torch.sub(1, sigmoid, out=slope).mul_(sigmoid).mul_(STRETCH).mul_(stretched.eq_(rounding))
    return rounding
