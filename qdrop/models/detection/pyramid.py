"""The feature pyramid (Lin et al., *Feature Pyramid Networks*, CVPR 2017), without norms and activations."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 256
"""Channels of every level."""


class ConvModule(nn.Module):
    """A convolution that keeps the size (divided by `stride`), under the name that mmdetection's checkpoints have."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]."""
        return self.conv(x)


class FeaturePyramid(nn.Module):
    """Levels of equal width from the last maps of a backbone: each is added to the coarser one, enlarged.

    Args:
        in_channels: Channels of the maps that are read, from fine to coarse.
        extra_convolutions: Further levels that strided convolutions make, the first of them from the backbone's last
            map, as RetinaNet has them but without its ReLU; 0: one level more, every second pixel of the last.
    """

    def __init__(self, in_channels: Sequence[int], extra_convolutions: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(channels, CHANNELS, 1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(ConvModule(CHANNELS, CHANNELS, 3) for _ in in_channels)
        extra = [in_channels[-1], *[CHANNELS] * extra_convolutions][:extra_convolutions]
        self.fpn_convs.extend(ConvModule(channels, CHANNELS, 3, stride=2) for channels in extra)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps `[N, C, H, W]` from fine to coarse, of which the last are read -> levels `[N, 256, H, W]`."""
        maps = maps[-len(self.lateral_convs) :]
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        levels = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=False)]
        extra = self.fpn_convs[len(merged) :]
        if not extra:
            return *levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)
        x = maps[-1]
        for conv in extra:
            x = conv(x)
            levels.append(x)
        return tuple(levels)
