"""The loss of a unit: distance to the full-precision output, plus the push of the rounding to 0 or 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdrop.quantization.fake_quant import AdaRoundFakeQuantize
from qdrop.quantization.soft_rounding import undecided


def reconstruction_loss(outs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """:func:`squared_error` of a unit's outputs, summed over them.

    Args:
        outs: The quantized unit's outputs.
        targets: The full-precision ones.

    Returns:
        A scalar.
    """
    errors = [squared_error(out, target) for out, target in zip(outs, targets, strict=True)]
    return errors[0] if len(errors) == 1 else torch.stack(errors).sum()


def squared_error(out: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over channels (dim 1), averaged over batch and positions.

    Args:
        out: An output of the quantized unit `[N, C, ...]`, or `[N]`, which has one channel.
        target: The same of the full-precision one, same shape.

    Returns:
        A scalar.
    """
    error = out - target
    channels = error.shape[1] if error.ndim > 1 else 1
    return (error * error).sum() / (error.numel() / channels)


def rounding_loss(roundings: Sequence[AdaRoundFakeQuantize], weight: Tensor, beta: Tensor) -> Tensor:
    """`weight * sum(1 - abs(2h - 1)^beta)` over a unit's weights (Nagel et al., AdaRound, 2020, eq. 24).

    Args:
        roundings: The unit's weight quantizers.
        weight: Weight of the term, a scalar.
        beta: Its exponent, a scalar.

    Returns:
        A scalar; 0 without weights.
    """
    terms = [undecided(r.alpha, beta) for r in roundings]
    return weight * torch.stack(terms).sum() if terms else weight * 0


@dataclass(frozen=True)
class RoundingSchedule:
    """Weight and exponent of the rounding term from iteration to iteration.

    Off for the first `warm_up` share of the iterations, then beta falls linearly from `b_range[0]`, which
    leaves all but the undecided roundings free, to `b_range[1]`.
    """

    weight: float
    """Weight of the term."""
    warm_up: float
    """Share of the iterations, 0 to 1, without it."""
    b_range: tuple[float, float]
    """First and last beta."""
    iters: int
    """Number of iterations."""

    def __call__(self, iteration: int) -> tuple[float, float]:
        """Weight and beta at `iteration` (1 to `iters`); while the term is off its weight is 0."""
        start = self.warm_up * self.iters
        if iteration < start:
            return 0.0, self.b_range[0]
        left = 1 - (iteration - start) / (self.iters - start)
        return self.weight, self.b_range[1] + (self.b_range[0] - self.b_range[1]) * max(0.0, left)
