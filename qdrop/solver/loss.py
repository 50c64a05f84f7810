"""The loss of a unit: distance to the full-precision output, plus the push of the rounding to 0 or 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qdrop.quantization.fake_quant import AdaRoundFakeQuantize


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over channels (dim 1), averaged over batch and positions.

    Args:
        out: The quantized unit's output `[N, C, ...]`.
        target: The full-precision output, same shape.

    Returns:
        A scalar.
    """
    error = out - target
    return (error * error).sum() / (error.numel() / error.shape[1])


@dataclass(frozen=True)
class RoundingLoss:
    """`weight * sum(1 - abs(2h - 1)^beta)` over a unit's weights (Nagel et al., AdaRound, 2020, eq. 24).

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

    def beta(self, iteration: int) -> float | None:
        """Beta at `iteration` (1 to `iters`), or None while the term is off."""
        start = self.warm_up * self.iters
        if iteration < start:
            return None
        left = 1 - (iteration - start) / (self.iters - start)
        return self.b_range[1] + (self.b_range[0] - self.b_range[1]) * max(0.0, left)

    def __call__(self, roundings: list[AdaRoundFakeQuantize], iteration: int) -> Tensor | None:
        """The term at `iteration` (1 to `iters`), a scalar; None while it is off."""
        beta = self.beta(iteration)
        if beta is None or not roundings:
            return None
        terms = [(1 - (2 * r.soft_rounding() - 1).abs().pow(beta)).sum() for r in roundings]
        return self.weight * torch.stack(terms).sum()
