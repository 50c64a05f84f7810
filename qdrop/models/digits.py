"""A residual network for 8x8 grey digits: the model of the quickstart, whose weights come with the package.

Our own arrangement of the blocks of He et al. 2016. It is narrow and deep on purpose: with 4 channels there is little
redundancy, so rounding to 2 bits fails, and what reconstruction gives back shows within a minute on a CPU.
"""

from torch import Tensor, nn

from qdrop.models.resnet import BasicBlock


class DigitsResNet(nn.Module):
    """A 3x3 stem, three stages of two residual blocks, global average pooling, one linear layer.

    Args:
        num_classes: length of the output.
        width: channels of the stem and the first stage; the next two stages have 2 and 4 times as many.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stage1 = nn.Sequential(BasicBlock(width, width), BasicBlock(width, width))
        self.stage2 = nn.Sequential(BasicBlock(width, 2 * width, stride=2), BasicBlock(2 * width, 2 * width))
        self.stage3 = nn.Sequential(BasicBlock(2 * width, 4 * width, stride=2), BasicBlock(4 * width, 4 * width))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Grey images [N, 1, 8, 8] -> logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))  # [N, width, 8, 8]
        x = self.stage3(self.stage2(self.stage1(x)))  # [N, 4 * width, 2, 2]
        return self.fc(self.avgpool(x).flatten(1))


def digits_resnet(num_classes: int = 10, width: int = 4) -> DigitsResNet:
    """The network of the quickstart, randomly initialised. Images [N, 1, 8, 8]."""
    return DigitsResNet(num_classes, width)
