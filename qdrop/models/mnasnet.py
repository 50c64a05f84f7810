"""MNASNet of width 2.0 for ImageNet: the variant without squeeze-and-excitation (B1).

Source: Tan et al., *MnasNet: Platform-Aware Neural Architecture Search for Mobile*, CVPR 2019
(arXiv 1807.11626), section 5 and Figure 7; every width but that of the last convolution is doubled.
"""

from torch import Tensor, nn

from qdrop.models.layers import conv_bn

STAGES = (
    # kernel size, expansion, channels, blocks, stride of the first block
    (3, 3, 48, 3, 2),
    (5, 3, 80, 3, 2),
    (5, 6, 160, 3, 2),
    (3, 6, 192, 2, 1),
    (5, 6, 384, 4, 2),
    (3, 6, 640, 1, 1),
)


class MBConv(nn.Module):
    """Expand by 1x1, filter each channel by 3x3 or 5x5, project by 1x1 without activation.

    The input is added where it has the shape of the output.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        kernel_size: of the depthwise convolution, 3 or 5.
        stride: stride of the depthwise convolution.
        expansion: channels of the depthwise convolution over `in_channels`.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.layers = nn.Sequential(
            *conv_bn(in_channels, hidden, kernel_size=1),
            nn.ReLU(),
            *conv_bn(hidden, hidden, kernel_size, stride, groups=hidden),
            nn.ReLU(),
            *conv_bn(hidden, channels, kernel_size=1),
        )
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, H / stride, W / stride]."""
        return self.layers(x) + x if self.has_shortcut else self.layers(x)


class MNASNet(nn.Module):
    """A separable stem, 16 MBConv blocks, a 1x1 convolution, global average pooling, one linear layer.

    Args:
        num_classes: length of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stem = [
            *conv_bn(3, 64, kernel_size=3, stride=2),
            nn.ReLU(),
            *conv_bn(64, 64, kernel_size=3, groups=64),
            nn.ReLU(),
            *conv_bn(64, 32, kernel_size=1),
        ]
        channels = 32
        stages = []
        for kernel_size, expansion, out_channels, depth, stride in STAGES:
            first = MBConv(channels, out_channels, kernel_size, stride, expansion)
            rest = [MBConv(out_channels, out_channels, kernel_size, 1, expansion) for _ in range(depth - 1)]
            stages.append(nn.Sequential(first, *rest))
            channels = out_channels
        self.layers = nn.Sequential(*stem, *stages, *conv_bn(channels, 1280, kernel_size=1), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, num_classes]."""
        x = self.layers(x)  # [N, 1280, H/32, W/32]
        return self.classifier(x.mean(dim=(2, 3)))


def mnasnet(num_classes: int = 1000) -> MNASNet:
    """MNASNet 2.0, randomly initialised. Images [N, 3, 224, 224]."""
    return MNASNet(num_classes)
