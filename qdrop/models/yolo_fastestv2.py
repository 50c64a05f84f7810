"""Yolo-FastestV2: a detector of 0.25 million weights for images of 352x352.

Source: github.com/dog-qiuqiu/Yolo-FastestV2; its backbone is ShuffleNetV2 (Ma et al., ECCV 2018, arXiv 1807.11164).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image, to_tensor

from qdrop.models.detection.boxes import Detection, Size, detection

ANCHORS: dict[int, tuple[tuple[float, float], ...]] = {
    16: ((12.64, 19.39), (37.88, 51.48), (55.71, 138.31)),
    32: ((126.91, 78.23), (131.57, 214.55), (279.92, 258.87)),
}
"""Width and height in pixels of the three anchors of a cell, by the stride of its level."""
SIDE = 352
"""Of the network's input, in pixels."""
SCORE, OVERLAP, COUNT = 0.01, 0.4, 100
"""Least score of a box, overlap of two of a class from which the surer one stays alone, and how many stay at most."""


class ShuffleUnit(nn.Module):
    """A unit of ShuffleNetV2: half of the channels, or at stride 2 all of them, pass through convolutions.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output; equal to `in_channels` where `stride` is 1.
        stride: 1, or 2 to halve height and width.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        middle = channels // 2
        seen = in_channels if stride == 2 else in_channels // 2
        untouched = in_channels if stride == 2 else in_channels // 2
        self.stride = stride
        self.branch_main = nn.Sequential(
            *_conv(seen, middle, 1, relu=True),
            *_conv(middle, middle, 3, stride, depthwise=True),
            *_conv(middle, channels - untouched, 1, relu=True),
        )
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *_conv(in_channels, in_channels, 3, stride, depthwise=True),
                *_conv(in_channels, in_channels, 1, relu=True),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, H / stride, W / stride]."""
        if self.stride == 2:
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        return torch.cat((x[:, 0::2], self.branch_main(x[:, 1::2])), 1)


class ShuffleNet(nn.Module):
    """The backbone: a stem and three stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*_conv(3, 24, 3, stride=2, relu=True))
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stage2 = _stage(24, 48, units=4)
        self.stage3 = _stage(48, 96, units=8)
        self.stage4 = _stage(96, 192, units=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] -> C2 [N, 96, H / 16, W / 16] and C3 [N, 192, H / 32, W / 32]."""
        x = self.maxpool(self.first_conv(x))  # [N, 24, H / 4, W / 4]
        c2 = self.stage3(self.stage2(x))
        return c2, self.stage4(c2)


class Head(nn.Module):
    """Twice a depthwise 5x5 and a 1x1 convolution, [N, channels, H, W] -> [N, channels, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [*_conv(channels, channels, 5, depthwise=True, relu=True), *_conv(channels, channels, 1)]
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The layers in a row."""
        return self.block(x)


class Pyramid(nn.Module):
    """The two levels of features, and on each a head for classes and objectness and one for boxes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1x1_2 = nn.Sequential(*_conv(96 + 192, channels, 1, relu=True))
        self.conv1x1_3 = nn.Sequential(*_conv(192, channels, 1, relu=True))
        self.cls_head_2, self.reg_head_2 = Head(channels), Head(channels)
        self.cls_head_3, self.reg_head_3 = Head(channels), Head(channels)

    def forward(self, c2: Tensor, c3: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """C2 and C3 -> of each level, the finer one first: features for classes, and for boxes."""
        p3 = self.conv1x1_3(c3)
        p2 = self.conv1x1_2(torch.cat((F.interpolate(c3, scale_factor=2.0), c2), 1))
        return (self.cls_head_2(p2), self.reg_head_2(p2)), (self.cls_head_3(p3), self.reg_head_3(p3))


class YoloFastestV2(nn.Module):
    """Backbone, pyramid, and output layers that both levels share. All of it is quantized.

    Args:
        num_classes: Classes of objects.
        channels: Width of pyramid and heads.
    """

    divisor = 32
    """Sides of a batch are multiples of it, which those of one picture are."""

    def __init__(self, num_classes: int = 80, channels: int = 72) -> None:
        super().__init__()
        self.num_classes = num_classes
        anchors = len(ANCHORS[16])
        self.backbone = ShuffleNet()
        self.fpn = Pyramid(channels)
        self.output_reg_layers = nn.Conv2d(channels, 4 * anchors, 1)
        self.output_obj_layers = nn.Conv2d(channels, anchors, 1)
        self.output_cls_layers = nn.Conv2d(channels, num_classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Prepared images [N, 3, H, W], H and W multiples of 32 -> the raw outputs, for :meth:`decode`.

        Returns:
            For each stride S, 16 and 32: `boxes_S` [N, 12, H / S, W / S], anchor by anchor; `objectness_S` [N, 3, ...];
            `classes_S` [N, num_classes, ...].
        """
        outputs = {}
        for stride, (classes, boxes) in zip(ANCHORS, self.fpn(*self.backbone(images)), strict=True):
            outputs[f"boxes_{stride}"] = self.output_reg_layers(boxes)
            outputs[f"objectness_{stride}"] = self.output_obj_layers(classes)
            outputs[f"classes_{stride}"] = self.output_cls_layers(classes)
        return outputs

    def features(self) -> nn.Module:
        """What is quantized: the network."""
        return self

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """A picture as the network takes it: squashed to 352x352, blue-green-red in 0 to 1.

        Args:
            image: RGB [3, H, W], uint8.

        Returns:
            float32 [3, 352, 352]; and what its width and height were multiplied by [2].
        """
        squashed = to_pil_image(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return to_tensor(squashed).flip(0), torch.tensor([SIDE / image.shape[2], SIDE / image.shape[1]])

    def decode(self, outputs: Mapping[str, Tensor], sizes: Sequence[Size], scales: Sequence[Tensor]) -> list[Detection]:
        """Detections: of every anchor its best class, with a score above 0.01.

        Args:
            outputs: What the network gives.
            sizes: Of the prepared images; not needed.
            scales: Their width and height over those of the pictures [2]; boxes are in the pictures' pixels.
        """
        found = []
        for boxes, scores, scale in zip(*anchor_boxes(outputs), scales, strict=True):
            best, labels = scores.max(1)
            sure = best > SCORE
            found.append(detection(boxes[sure], best[sure], labels[sure], scale, OVERLAP, COUNT))
        return found


def anchor_boxes(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes and scores of every anchor, in pixels of the network's input.

    Centre (2 sigmoid - 0.5 + cell) * stride, size (2 sigmoid)^2 * anchor. The score of a class is its softmax, which
    the anchors of a cell share, times the sigmoid of the anchor's objectness.

    Args:
        outputs: What the network gives.

    Returns:
        Boxes [N, A, 4] as x1, y1, x2, y2, and scores [N, A, num_classes].
    """
    boxes, scores = [], []
    for stride, sizes in ANCHORS.items():
        raw = outputs[f"boxes_{stride}"].unflatten(1, (len(sizes), 4)).sigmoid()  # [N, 3, 4, h, w]
        rows, columns = (torch.arange(n, device=raw.device) for n in raw.shape[-2:])
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))  # [2, h, w]
        anchors = torch.tensor(sizes, device=raw.device)[..., None, None]  # [3, 2, 1, 1]
        centres = (2 * raw[:, :, :2] - 0.5 + cells) * stride
        halves = (2 * raw[:, :, 2:]) ** 2 * anchors / 2
        corners = torch.cat((centres - halves, centres + halves), 2)  # [N, 3, 4, h, w]
        objectness = outputs[f"objectness_{stride}"].sigmoid().unsqueeze(2)  # [N, 3, 1, h, w]
        classes = outputs[f"classes_{stride}"].softmax(1).unsqueeze(1)  # [N, 1, C, h, w]
        boxes.append(corners.movedim(2, -1).flatten(1, 3))
        scores.append((objectness * classes).movedim(2, -1).flatten(1, 3))
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def _stage(in_channels: int, channels: int, units: int) -> nn.Sequential:
    """A unit that halves the image, and others that keep its size."""
    first = ShuffleUnit(in_channels, channels, stride=2)
    return nn.Sequential(first, *[ShuffleUnit(channels, channels, stride=1) for _ in range(units - 1)])


def _conv(
    in_channels: int, channels: int, kernel: int, stride: int = 1, *, depthwise: bool = False, relu: bool = False
) -> list[nn.Module]:
    """A convolution that keeps the size at stride 1, batch norm, and a ReLU where asked for."""
    groups = channels if depthwise else 1
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), *([nn.ReLU()] if relu else [])]
