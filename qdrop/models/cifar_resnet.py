"""ResNet-20, 32, 44, 56 and 110 for 32x32 images.

Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016 (arXiv 1512.03385),
section 4.2, with the parameter-free shortcut (option A of section 3.3).
"""

import torch.nn.functional as F
from torch import Tensor, nn


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights.

    Where the shape changes, the shortcut takes every second pixel and pads the missing channels with zeros,
    half of them before and half after.

    Args:
        in_channels: channels of the input.
        channels: channels of the output; twice `in_channels` where `stride` is 2, else equal to it.
        stride: 1, or 2 to halve the height and width.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.stride = stride
        self.padding = (channels - in_channels) // 2  # zero channels on either side

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, H / stride, W / stride]."""
        shortcut = x
        if self.stride != 1:
            pixels = x[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(pixels, (0, 0, 0, 0, self.padding, self.padding))
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + shortcut)


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of 16, 32 and 64 channels, global average pooling, one linear layer.

    Args:
        depth: blocks in each stage; the network has 6 * depth + 2 weighted layers.
        num_classes: length of the output.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, depth, stride=1)
        self.layer2 = _stage(16, 32, depth, stride=2)
        self.layer3 = _stage(32, 64, depth, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, 32, 32] -> logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))  # [N, 16, 32, 32]
        x = self.layer3(self.layer2(self.layer1(x)))  # [N, 64, 8, 8]
        return self.linear(self.avgpool(x).flatten(1))


def _stage(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    """`depth` blocks in a row, the first of which changes the shape."""
    first = CifarBlock(in_channels, channels, stride)
    return nn.Sequential(first, *[CifarBlock(channels, channels, stride=1) for _ in range(depth - 1)])


def cifar_resnet(depth: int, num_classes: int = 10) -> CifarResNet:
    """ResNet for CIFAR (Table 6) with so many weighted layers, randomly initialised. Images [N, 3, 32, 32].

    Args:
        depth: 6n + 2, such as 20, 32, 44, 56 or 110.
        num_classes: length of the output.

    Raises:
        ValueError: If there is no such depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth {depth}: expected 6n + 2 layers, such as 20, 32, 44, 56 or 110")
    return CifarResNet(blocks, num_classes)
