"""QDrop's random drop: which values of an activation stay in full precision in this iteration."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qdrop.quantization.blocks import in_blocks
from qdrop.quantization.layout import memory_format


@dataclass(frozen=True)
class Mask:
    """A mask of 0 and 1, worked out piece by piece by whoever uses it: whole it would cost a trip to memory."""

    numbers: Tensor
    """What it is made from, in its shape `[...]`."""
    choose: Callable[[Tensor], Tensor]
    """The mask, float32, of some of the numbers."""

    def whole(self) -> Tensor:
        """All of it."""
        return self.choose(self.numbers)


def draw_seeds(count: int, generator: torch.Generator) -> Tensor:
    """Seeds `[count, 2]` for as many masks, int32, on the generator's device; the first of each is odd."""
    low, high = -(2**31), 2**31
    seeds = torch.randint(low, high, (count, 2), generator=generator, dtype=torch.int32, device=generator.device)
    seeds[:, 0].bitwise_or_(1)
    return seeds


def stream(generator: torch.Generator) -> Iterator[Tensor]:
    """Seeds `[2]` without end, for a :class:`Drop` that draws as it goes."""
    while True:
        yield draw_seeds(1, generator)[0]


def scrambled_positions(shape: torch.Size, layout: torch.memory_format, device: torch.device) -> Tensor:
    """A number for each element that looks random and depends on its position alone (a hash of it).

    Args:
        shape: `[...]`; positions count as in a contiguous tensor, however the result lies in memory.
        layout: How it lies there.
        device: Where.

    Returns:
        int32, `[...]`.
    """
    # A compiler may take a range times a constant for an index, and reckon on with it in 64 bits (torch before
    # 2.13 on a GPU); what an exclusive or gives is no index.
    value = torch.arange(shape.numel(), dtype=torch.int32, device=device).bitwise_xor_(0).mul_(0x2C1B3C6D)
    value.bitwise_xor_(value >> 15).mul_(0x297A2D39)
    value.bitwise_xor_(value >> 13).mul_(0x7FEB352D)
    value.bitwise_xor_(value >> 16)
    return value.view(shape).contiguous(memory_format=layout)


class Drop:
    """Keeps each quantized value with probability `keep_prob`, else leaves the full-precision one in its place.

    Args:
        keep_prob: Probability of keeping the quantized value. 1.0 never drops, 0.0 always does.
        seeds: A seed `[2]` (int32, on the device of the tensors) for each mask, in the order they are asked
            for; masks of one seed and shape are the same, on any device and compiled or not.
        positions: :func:`scrambled_positions`, or the same with a memory.
    """

    def __init__(
        self,
        keep_prob: float,
        seeds: Iterator[Tensor],
        positions: Callable[[torch.Size, torch.memory_format, torch.device], Tensor] = scrambled_positions,
    ) -> None:
        self.keep_prob = keep_prob
        self.seeds = seeds
        self.positions = positions

    def mask(self, like: Tensor) -> Mask:
        """A mask for the shape and device of `like`; the chance of 1 is `keep_prob`, to 2^-24.

        Multiply-shift hashing (Dietzfelbinger et al., 1997) of each element's number with the seed: drawing from a
        generator costs more than a small convolution, and could not be fused with what uses it.
        """
        factor, offset = next(self.seeds).unbind()
        # Float32 rounds the largest numbers up to 2^31: always means below infinity.
        threshold = math.inf if self.keep_prob == 1 else (self.keep_prob - 0.5) * 2**32

        def choose(numbers: Tensor) -> Tensor:
            # In float32 before the comparison: booleans are slow to store on a CPU.
            return (numbers * factor).add_(offset).to(torch.float32).lt_(threshold)

        return Mask(self.positions(like.shape, memory_format(like), like.device), choose)

    def mix(self, quantized: Tensor, full: Tensor) -> Tensor:
        """Each element of `quantized` with probability `keep_prob`, else of `full` (same shape); carries no gradient.

        Integers, such as the numbers of words, are the same in both.
        """
        if self.keep_prob == 1 or not full.is_floating_point():
            return quantized
        keep = self.mask(full)

        def work(full: Tensor, quantized: Tensor, numbers: Tensor, out: Tensor) -> None:
            torch.lerp(full, quantized, keep.choose(numbers), out=out)

        return in_blocks(work, 1, full, quantized, keep.numbers)[0]
