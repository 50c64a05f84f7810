"""Pictures made ready for the detectors of the paper, as their training prepared them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qdrop.models.detection.boxes import Size

LONG, SHORT = 1333, 800
"""Largest sides of a prepared image in pixels."""
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Of each channel, red, green, blue, of pixels from 0 to 255."""
DIVISOR = 32
"""Of the sides of a batch, for detectors whose pyramid halves a side five times."""


def resized(size: Size, long: int = LONG, short: int = SHORT) -> Size:
    """Height and width to which a picture of that height and width is resized."""
    scale = min(long / max(size), short / min(size))
    height, width = (int(side * scale + 0.5) for side in size)
    return height, width


def prepare(image: Tensor, long: int = LONG, short: int = SHORT) -> tuple[Tensor, Tensor]:
    """A picture resized on pixels of 8 bits, and normalised.

    Args:
        image: RGB `[3, H, W]`, uint8, or 0 to 1.
        long: Largest length of the longer side, in pixels.
        short: And of the shorter.

    Returns:
        float32 `[3, h, w]`; and what its width and height were multiplied by `[2]`, which differs a little.
    """
    pixels = image if image.dtype == torch.uint8 else (image * 255).round()
    height, width = resized((image.shape[1], image.shape[2]), long, short)
    larger = resize(pixels.int(), (height, width)).float()
    mean, std = (larger.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    scale = torch.tensor([width / image.shape[2], height / image.shape[1]])
    return (larger - mean) / std, scale


def resize(pixels: Tensor, size: Size) -> Tensor:
    """Bilinear interpolation in integers, as OpenCV's: floats, rounded, are a grey level higher now and then.

    Args:
        pixels: 0 to 255, int32 `[C, H, W]`.
        size: Height and width to give.

    Returns:
        int32 `[C, height, width]`.
    """
    (top, bottom, of_top, of_bottom), (left, right, of_left, of_right) = (
        _neighbours(pixels.shape[axis], length, pixels.device) for axis, length in zip((1, 2), size, strict=True)
    )
    columns = pixels[:, :, left] * of_left + pixels[:, :, right] * of_right  # 19 bits
    columns = columns >> 4
    upper, lower = columns[:, top] * of_top[:, None] >> 16, columns[:, bottom] * of_bottom[:, None] >> 16
    return upper + lower + 2 >> 2


def _neighbours(length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For `count` new pixels along a side: numbers of the old ones on both sides of each, and their weights of 2048."""
    place = ((torch.arange(count, dtype=torch.float64) + 0.5) * (length / count) - 0.5).float()
    before = place.floor()
    share = place - before
    found = before.long(), before.long() + 1
    weights = ((1 - share) * 2048).round().int(), (share * 2048).round().int()
    first, second = (numbers.clamp(0, length - 1).to(device) for numbers in found)
    return first, second, weights[0].to(device), weights[1].to(device)


def together(images: Sequence[Tensor], divisor: int = DIVISOR) -> Tensor:
    """Prepared images `[3, h, w]` as a batch `[N, 3, H, W]`, with zeros to the right and below up to the divisor."""
    height, width = (-(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (1, 2))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])
