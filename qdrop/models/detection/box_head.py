"""The second stage of Faster R-CNN: a closer look at each proposal."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdrop.models.detection.boxes import Detection, Size, decode, detection
from qdrop.models.detection.pyramid import CHANNELS

STRIDES = (4, 8, 16, 32)
"""Of the levels that proposals are cut from."""
SIDE = 7
"""Cells along each side of what is cut out."""
HIDDEN = 1024
STDS = (0.1, 0.1, 0.2, 0.2)
LOWEST_SCORE = 0.05
OVERLAP = 0.5
DETECTIONS = 100
FINEST = 56
"""Side, in pixels, of a square proposal from which on the second level is read, halved."""


def level_of(boxes: Tensor) -> Tensor:
    """Number of the level that each box is cut from `[K]`: `floor(log2(sqrt(area) / 56))`, 0 to 3.

    Lin et al., *Feature Pyramid Networks*, CVPR 2017, equation 1.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    level = torch.floor(torch.log2((width * height).sqrt() / FINEST + 1e-6))
    return level.clamp(0, len(STRIDES) - 1).long()


def roi_features(levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """What lies under boxes, each from the level of its size (He et al., *Mask R-CNN*, ICCV 2017: RoIAlign).

    Args:
        levels: `[N, C, H, W]`, from fine to coarse; the first four are read.
        boxes: Of each image `[K, 4]`.

    Returns:
        `[K, C, 7, 7]`, K of all images.
    """
    from torchvision.ops import roi_align  # slow to import, and only needed here

    image = torch.cat([torch.full((len(found), 1), float(i)) for i, found in enumerate(boxes)]).to(levels[0])
    together = torch.cat(list(boxes))
    rois, level = torch.cat([image, together], dim=1), level_of(together)
    cut = levels[0].new_zeros(len(rois), levels[0].shape[1], SIDE, SIDE)
    for i, (source, stride) in enumerate(zip(levels, STRIDES, strict=False)):
        chosen = level == i
        # sampling_ratio 0: as many samples as a cell has pixels
        cut[chosen] = roi_align(source, rois[chosen], SIDE, 1 / stride, sampling_ratio=0, aligned=True)
    return cut


class BoxHead(nn.Module):
    """Two hidden layers; a score for each class and the background, and a box for each class.

    Args:
        num_classes: Classes, the background not counted.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc_cls = nn.Linear(HIDDEN, num_classes + 1)
        self.fc_reg = nn.Linear(HIDDEN, 4 * num_classes)
        self.shared_fcs = nn.ModuleList([nn.Linear(CHANNELS * SIDE**2, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])

    def forward(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[K, 256, 7, 7]` -> scores `[K, classes + 1]`, background last, and deltas `[K, 4 * classes]`."""
        x = rois.flatten(1)
        for layer in self.shared_fcs:
            x = layer(x).relu()
        return self.fc_cls(x), self.fc_reg(x)

    def detect(self, scores: Tensor, deltas: Tensor, boxes: Tensor, size: Size, scale: Tensor) -> Detection:
        """What is found in one image.

        Args:
            scores: Of each proposal, before the softmax `[P, classes + 1]`.
            deltas: `[P, 4 * classes]`.
            boxes: The proposals `[P, 4]`.
            size: Of the image, without padding.
            scale: See :func:`qdrop.models.detection.boxes.detection`.
        """
        of_class = deltas.view(len(deltas), self.num_classes, 4)
        decoded = decode(boxes[:, None].expand_as(of_class), of_class, size, STDS)
        probable = scores.softmax(1)[:, : self.num_classes]
        proposal, label = (probable > LOWEST_SCORE).nonzero(as_tuple=True)
        score = probable[proposal, label]
        return detection(decoded[proposal, label], score, label, scale, OVERLAP, DETECTIONS)
