"""MobileNetV2 of width 1.0 for ImageNet.

Source: Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018
(arXiv 1801.04381), Tables 1 and 2.
"""

from torch import Tensor, nn

from qdrop.models.layers import conv_bn

STAGES = (
    # expansion, channels, blocks, stride of the first block (Table 2: t, c, n, s)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without activation (Table 1).

    The input is added where it has the shape of the output.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: stride of the depthwise convolution.
        expansion: channels of the depthwise convolution over `in_channels`; at 1 nothing expands.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [*conv_bn(in_channels, hidden, kernel_size=1), nn.ReLU6()] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            *conv_bn(hidden, hidden, kernel_size=3, stride=stride, groups=hidden),
            nn.ReLU6(),
            *conv_bn(hidden, channels, kernel_size=1),
        )
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, H / stride, W / stride]."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residuals, a 1x1 convolution, global average pooling, one linear layer (Table 2).

    Args:
        num_classes: length of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = 32
        features: list[nn.Module] = [nn.Sequential(*conv_bn(3, channels, kernel_size=3, stride=2), nn.ReLU6())]
        for expansion, out_channels, blocks, first_stride in STAGES:
            for index in range(blocks):
                stride = first_stride if index == 0 else 1
                features.append(InvertedResidual(channels, out_channels, stride, expansion))
                channels = out_channels
        features.append(nn.Sequential(*conv_bn(channels, 1280, kernel_size=1), nn.ReLU6()))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, num_classes]."""
        x = self.features(x)  # [N, 1280, H/32, W/32]
        return self.classifier(x.mean(dim=(2, 3)))


def mobilenetv2(num_classes: int = 1000) -> MobileNetV2:
    """MobileNetV2 1.0, randomly initialised. Images [N, 3, 224, 224]."""
    return MobileNetV2(num_classes)
