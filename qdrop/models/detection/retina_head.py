"""RetinaNet's head (Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017): classes and boxes in one step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdrop.models.detection.anchors import RATIOS, anchors
from qdrop.models.detection.boxes import Detection, Size, decode, detection, not_empty
from qdrop.models.detection.pyramid import CHANNELS, ConvModule

STRIDES = (8, 16, 32, 64, 128)
SCALES = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
DEPTH = 4
PER_LEVEL = 1000
LOWEST_SCORE = 0.05
OVERLAP = 0.5
DETECTIONS = 100


class RetinaHead(nn.Module):
    """Two towers of convolutions, shared by all levels.

    Args:
        num_classes: Classes; there is none for the background.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_convs = nn.ModuleList(ConvModule(CHANNELS, CHANNELS, 3) for _ in range(DEPTH))
        self.reg_convs = nn.ModuleList(ConvModule(CHANNELS, CHANNELS, 3) for _ in range(DEPTH))
        count = len(RATIOS) * len(SCALES)
        self.retina_cls = nn.Conv2d(CHANNELS, count * num_classes, kernel_size=3, padding=1)
        self.retina_reg = nn.Conv2d(CHANNELS, count * 4, kernel_size=3, padding=1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels `[N, 256, H, W]` -> scores `[N, A * classes, H, W]` and deltas `[N, A * 4, H, W]` of each."""
        scores, deltas = [], []
        for level in levels:
            of_class, of_box = level, level
            for conv in self.cls_convs:
                of_class = conv(of_class).relu()
            for conv in self.reg_convs:
                of_box = conv(of_box).relu()
            scores.append(self.retina_cls(of_class))
            deltas.append(self.retina_reg(of_box))
        return scores, deltas

    def detect(self, scores: Sequence[Tensor], deltas: Sequence[Tensor], size: Size, scale: Tensor) -> Detection:
        """What is found in one image.

        Args:
            scores: Of each level, before the sigmoid `[A * classes, H, W]`.
            deltas: Of each level `[A * 4, H, W]`.
            size: Of the image, without padding.
            scale: See :func:`qdrop.models.detection.boxes.detection`.
        """
        boxes, found, labels = [], [], []
        for score, delta, stride in zip(scores, deltas, STRIDES, strict=True):
            probable = score.permute(1, 2, 0).reshape(-1, self.num_classes).sigmoid()
            anchor, label = (probable > LOWEST_SCORE).nonzero(as_tuple=True)
            best = probable[anchor, label].sort(descending=True)
            anchor, label = (which[best.indices[:PER_LEVEL]] for which in (anchor, label))
            of_anchor = delta.permute(1, 2, 0).reshape(-1, 4)
            boxes.append(decode(anchors(score, stride, SCALES)[anchor], of_anchor[anchor], size))
            found.append(best.values[:PER_LEVEL])
            labels.append(label)
        box, probability, label = torch.cat(boxes), torch.cat(found), torch.cat(labels)
        real = not_empty(box)
        return detection(box[real], probability[real], label[real], scale, OVERLAP, DETECTIONS)
