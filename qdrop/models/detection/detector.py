"""A detector: features that are quantized, and heads that are not."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdrop.models.detection.box_head import BoxHead, roi_features
from qdrop.models.detection.boxes import Detection, Size
from qdrop.models.detection.preparation import DIVISOR, prepare, together
from qdrop.models.detection.pyramid import FeaturePyramid
from qdrop.models.detection.retina_head import RetinaHead
from qdrop.models.detection.rpn import RPNHead, proposals
from qdrop.models.resnet import Bottleneck, ResNetStages


class Detector(nn.Module, ABC):
    """Images to boxes. Its state dict has the keys of mmdetection's checkpoints.

    Args:
        depths: Bottlenecks in each of the four stages.
        neck: The pyramid.
        num_classes: Classes, the background not counted.
    """

    divisor = DIVISOR
    """Sides of a batch are multiples of it."""

    def __init__(self, depths: tuple[int, int, int, int], neck: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone: nn.Module = ResNetStages(Bottleneck, depths)
        self.neck: nn.Module = neck

    def features(self) -> nn.Module:
        """What is quantized, as one module on the same weights: prepared images [N, 3, H, W] -> levels."""
        return nn.Sequential(OrderedDict(backbone=self.backbone, neck=self.neck))

    def use_features(self, features: nn.Module) -> None:
        """Take a quantized :meth:`features` in the place of the own."""
        self.backbone, self.neck = features, nn.Identity()

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`qdrop.models.detection.preparation.prepare`."""
        return prepare(image)

    def forward(self, images: Sequence[Tensor]) -> list[Detection]:
        """Detections in pictures, RGB `[3, H, W]` each: uint8, or 0 to 1; boxes are in their pixels."""
        prepared = [self.prepare(image) for image in images]
        batch = together([image for image, _ in prepared]).to(images[0].device)
        sizes = [(image.shape[1], image.shape[2]) for image, _ in prepared]
        return self.detect(batch, sizes, [scale for _, scale in prepared])

    @torch.no_grad()
    def detect(self, batch: Tensor, sizes: Sequence[Size], scales: Sequence[Tensor]) -> list[Detection]:
        """Detections in prepared images.

        Args:
            batch: Padded images `[N, 3, H, W]`, as :mod:`qdrop.models.detection.preparation` makes them.
            sizes: Of each without padding.
            scales: Width and height of each over those of the picture `[2]`; boxes are in the picture's pixels.
        """
        return self.decode(self.neck(self.backbone(batch)), sizes, scales)

    @abstractmethod
    def decode(self, levels: Sequence[Tensor], sizes: Sequence[Size], scales: Sequence[Tensor]) -> list[Detection]:
        """Detections from the levels `[N, 256, H, W]`; see :meth:`detect`."""


class RoIHead(nn.Module):
    """Holds the box head, under the name that mmdetection's checkpoints have."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.bbox_head = BoxHead(num_classes)


class FasterRCNN(Detector):
    """Proposals, and a closer look at each.

    Args:
        depths: Bottlenecks in each of the four stages.
        num_classes: Classes, the background not counted.
    """

    def __init__(self, depths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__(depths, FeaturePyramid((256, 512, 1024, 2048), extra_convolutions=0), num_classes)
        self.rpn_head = RPNHead()
        self.roi_head = RoIHead(num_classes)

    def decode(self, levels: Sequence[Tensor], sizes: Sequence[Size], scales: Sequence[Tensor]) -> list[Detection]:
        """See :meth:`Detector.decode`."""
        scores, deltas = self.rpn_head(levels)
        boxes = [proposals([s[i] for s in scores], [d[i] for d in deltas], size)[0] for i, size in enumerate(sizes)]
        head = self.roi_head.bbox_head
        counts = [len(found) for found in boxes]
        found = (values.split(counts) for values in head(roi_features(levels, boxes)))
        return [head.detect(*of_image) for of_image in zip(*found, boxes, sizes, scales, strict=True)]


class RetinaNet(Detector):
    """Classes and boxes straight from the levels.

    Args:
        depths: Bottlenecks in each of the four stages.
        num_classes: Classes; there is none for the background.
    """

    def __init__(self, depths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__(depths, FeaturePyramid((512, 1024, 2048), extra_convolutions=2), num_classes)
        self.bbox_head = RetinaHead(num_classes)

    def decode(self, levels: Sequence[Tensor], sizes: Sequence[Size], scales: Sequence[Tensor]) -> list[Detection]:
        """See :meth:`Detector.decode`."""
        scores, deltas = self.bbox_head(levels)
        return [
            self.bbox_head.detect([s[i] for s in scores], [d[i] for d in deltas], size, scale)
            for i, (size, scale) in enumerate(zip(sizes, scales, strict=True))
        ]
