"""RegNetX-600MF and RegNetX-3.2GF for ImageNet.

Source: Radosavovic et al., *Designing Network Design Spaces*, CVPR 2020 (arXiv 2003.13678): the X block of
section 3.2 (bottleneck ratio 1); depths, widths and group widths from its list of the best RegNetX models.
"""

from collections import OrderedDict

from torch import Tensor, nn


class Stem(nn.Module):
    """A 3x3 convolution of stride 2 with batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, channels, H / 2, W / 2]."""
        return self.relu(self.bn(self.conv(x)))


def residual_branch(in_channels: int, channels: int, group_width: int, stride: int) -> nn.Sequential:
    """1x1, grouped 3x3 and 1x1 convolutions; the last one without activation."""
    return nn.Sequential(
        OrderedDict(
            a=nn.Conv2d(in_channels, channels, kernel_size=1, bias=False),
            a_bn=nn.BatchNorm2d(channels),
            a_relu=nn.ReLU(),
            b=nn.Conv2d(
                channels,
                channels,
                kernel_size=3,
                stride=stride,
                padding=1,
                groups=channels // group_width,
                bias=False,
            ),
            b_bn=nn.BatchNorm2d(channels),
            b_relu=nn.ReLU(),
            c=nn.Conv2d(channels, channels, kernel_size=1, bias=False),
            c_bn=nn.BatchNorm2d(channels),
        )
    )


class XBlock(nn.Module):
    """The residual bottleneck with grouped convolution, bottleneck ratio 1 (section 3.2, Figure 4).

    Args:
        in_channels: channels of the input.
        channels: channels of the output, a multiple of `group_width`.
        group_width: channels of one group of the 3x3 convolution.
        stride: stride of the 3x3 convolution and of the projection.
    """

    def __init__(self, in_channels: int, channels: int, group_width: int, stride: int) -> None:
        super().__init__()
        self.has_projection = stride != 1 or in_channels != channels
        if self.has_projection:
            self.proj = nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False)
            self.bn = nn.BatchNorm2d(channels)
        self.f = residual_branch(in_channels, channels, group_width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, H / stride, W / stride]."""
        shortcut = self.bn(self.proj(x)) if self.has_projection else x
        return self.relu(shortcut + self.f(x))


class Head(nn.Module):
    """Global average pooling and one linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, num_classes]."""
        return self.fc(self.avgpool(x).flatten(1))


class RegNetX(nn.Module):
    """A stem of 32 channels, four stages of X blocks, a head.

    Args:
        depths: blocks in each of the four stages; the first of each halves the height and width.
        widths: channels of each stage.
        group_width: channels of one group of the 3x3 convolutions.
        num_classes: length of the output.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        widths: tuple[int, int, int, int],
        group_width: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = Stem(32)
        self.s1 = _stage(32, widths[0], depths[0], group_width)
        self.s2 = _stage(widths[0], widths[1], depths[1], group_width)
        self.s3 = _stage(widths[1], widths[2], depths[2], group_width)
        self.s4 = _stage(widths[2], widths[3], depths[3], group_width)
        self.head = Head(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, num_classes]."""
        x = self.stem(x)  # [N, 32, H/2, W/2]
        x = self.s4(self.s3(self.s2(self.s1(x))))  # [N, widths[3], H/32, W/32]
        return self.head(x)


def _stage(in_channels: int, channels: int, depth: int, group_width: int) -> nn.Sequential:
    """`depth` blocks named b1, b2, ..., the first of which has stride 2."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict(b1=XBlock(in_channels, channels, group_width, stride=2))
    for index in range(2, depth + 1):
        blocks[f"b{index}"] = XBlock(channels, channels, group_width, stride=1)
    return nn.Sequential(blocks)


def regnetx_600m(num_classes: int = 1000) -> RegNetX:
    """RegNetX-600MF, randomly initialised. Images [N, 3, 224, 224]."""
    return RegNetX((1, 3, 5, 7), (48, 96, 240, 528), 24, num_classes)


def regnetx_3200m(num_classes: int = 1000) -> RegNetX:
    """RegNetX-3.2GF, randomly initialised. Images [N, 3, 224, 224]."""
    return RegNetX((2, 6, 15, 2), (96, 192, 432, 1008), 48, num_classes)
