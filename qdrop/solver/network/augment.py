"""Variations of calibration images, for what is learned towards full precision: any image has a target there."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from qdrop.graph.inputs import Arguments

SHARE = 8
"""A shift goes up to this part of the height and width: 4 of 32 pixels, as is usual for CIFAR-10 (He et al., 2016)."""


def vary(batch: Arguments, generator: torch.Generator) -> Arguments:
    """Images `[N, C, H, W]` shifted, all by the same number of pixels, and each mirrored or not; other tensors as is.

    Args:
        batch: A network's arguments.
        generator: On the CPU. Inputs of one size are all varied alike.

    Returns:
        Arguments of the same shapes.
    """
    seed = int(torch.randint(2**62, (), generator=generator))

    def varied(value: object) -> object:
        if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
            return value
        return mirrored(shifted(value, torch.Generator().manual_seed(seed)), torch.Generator().manual_seed(seed))

    found: Arguments = pytree.tree_map(varied, batch)
    return found


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved up or down, left or right, by up to an eighth of their size; what comes in is 0."""
    height, width = images.shape[2:]
    room = [max(1, side // SHARE) for side in (height, width)]
    down, right = (int(torch.randint(2 * r + 1, (), generator=generator)) for r in room)
    padded = F.pad(images, (room[1], room[1], room[0], room[0]))
    return padded[:, :, down : down + height, right : right + width].contiguous()


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images, chosen at random, with left and right exchanged."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(chosen.to(images.device), images.flip(3), images)
