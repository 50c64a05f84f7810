"""Anchors: boxes of a few sizes and shapes around every cell of a feature map."""

import torch
from torch import Tensor

RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""


def base_anchors(stride: int, scales: tuple[float, ...]) -> Tensor:
    """Boxes around the origin `[A, 4]` as x1, y1, x2, y2: of height `stride * scale * sqrt(ratio)`.

    Their width is `stride * scale / sqrt(ratio)`. Ratios are outermost, scales inside.
    """
    roots = torch.tensor(RATIOS).sqrt()[:, None]
    sizes = stride * torch.tensor(scales)[None]
    half_width, half_height = (sizes / roots).flatten() / 2, (sizes * roots).flatten() / 2
    return torch.stack([-half_width, -half_height, half_width, half_height], dim=1)


def anchors(level: Tensor, stride: int, scales: tuple[float, ...]) -> Tensor:
    """All anchors of a level, in pixels `[H * W * A, 4]`: cells row by row, the first one's centre at (0, 0).

    Args:
        level: A feature map `[N, C, H, W]`, of which the size and the device count.
        stride: Pixels between two cells.
        scales: Sizes in strides.
    """
    height, width = level.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) * stride
    return (centres + base_anchors(stride, scales)).reshape(-1, 4).to(level.device)
