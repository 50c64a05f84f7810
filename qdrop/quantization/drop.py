"""QDrop's random drop: which values of an activation stay in full precision in this iteration."""

from collections.abc import Iterator

import torch
from torch import Tensor

_BITS = 24
"""Random bits per decision: what a float32 holds exactly."""


def draw_seeds(count: int, generator: torch.Generator) -> Tensor:
    """Seeds `[count, 2]` for as many masks, int32, on the generator's device."""
    low, high = -(2**31), 2**31
    return torch.randint(low, high, (count, 2), generator=generator, dtype=torch.int32, device=generator.device)


def stream(generator: torch.Generator) -> Iterator[Tensor]:
    """Seeds `[2]` without end, for a :class:`Drop` that draws as it goes."""
    while True:
        yield draw_seeds(1, generator)[0]


class Drop:
    """Keeps each quantized value with probability `prob`, else leaves the full-precision one in its place.

    Args:
        prob: The published `drop_prob`: the probability of KEEPING the quantized value. 1.0 never drops,
            0.0 always does.
        seeds: A seed `[2]` (int32, on the device of the tensors) for each mask, in the order they are asked
            for; masks of one seed and shape are the same, on any device and compiled or not.
    """

    def __init__(self, prob: float, seeds: Iterator[Tensor]) -> None:
        self.prob = prob
        self.seeds = seeds

    def mask(self, like: Tensor) -> Tensor:
        """A mask of 0 and 1, shape and device of `like`, float32; the chance of 1 is `prob`, to 2^-24.

        The position of each element is hashed with the seed: drawing from a generator costs more than a small
        convolution, and could not be fused with what uses it. No booleans: on a CPU they are slow to store.
        """
        seed = next(self.seeds)
        value = torch.arange(like.numel(), dtype=torch.int32, device=like.device)
        value.add_(seed[0]).mul_(0x2C1B3C6D)
        value.bitwise_xor_(value >> 15).add_(seed[1]).mul_(0x297A2D39)
        value.bitwise_xor_(value >> 13).mul_(0x7FEB352D)
        drawn = (value >> (32 - _BITS)).to(torch.float32)  # integers from -2^23 to 2^23 - 1
        threshold = round(self.prob * 2**_BITS) - 2 ** (_BITS - 1)
        return drawn.neg_().add_(threshold).clamp_(0, 1).view(like.shape)

    def mix(self, quantized: Tensor, full: Tensor) -> Tensor:
        """Each element of `quantized` with probability `prob`, else of `full` (same shape)."""
        return quantized if self.prob == 1 else torch.lerp(full, quantized, self.mask(full))
