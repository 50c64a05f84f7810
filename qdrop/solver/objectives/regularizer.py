"""The regularizer of the rounding, and its schedule."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qdrop.quantization.fake_quant import FakeQuantize


def rounding_loss(quantizers: Iterable[FakeQuantize], weight: Tensor, beta: Tensor) -> Tensor:
    """`weight` times the sum of the regularizers of all roundings that have one.

    Args:
        quantizers: The unit's quantizers.
        weight: Weight of the term, a scalar.
        beta: Its exponent, a scalar, see :class:`RoundingSchedule`.

    Returns:
        A scalar; 0 where there is none.
    """
    found = (quantizer.rounding.regularizer(beta) for quantizer in quantizers)
    terms = [term for term in found if term is not None]
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
