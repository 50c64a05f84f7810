"""Detectors as the paper has them: Faster R-CNN and RetinaNet with ResNet-FPN, in mmdetection's semantics.

detector = build_model("retinanet_r50_fpn", path="auto")
found = detector([image])                # one dict for each image: boxes, scores, labels
features = detector.features()           # what is quantized: images in, pyramid out
detector.use_features(quantized)
"""

from qdrop.models.detection.detector import Detector, FasterRCNN, RetinaNet

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Bottlenecks in each stage of a ResNet (He et al., CVPR 2016, Table 1)."""


def faster_rcnn(depth: int, num_classes: int = 80) -> FasterRCNN:
    """Faster R-CNN with ResNet-FPN (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017), randomly initialised.

    Args:
        depth: 50 or 101.
        num_classes: Classes, the background not counted.
    """
    return FasterRCNN(DEPTHS[depth], num_classes)


def retinanet(depth: int, num_classes: int = 80) -> RetinaNet:
    """RetinaNet with ResNet-FPN (Lin et al., *Focal Loss*, ICCV 2017), randomly initialised.

    Args:
        depth: 50 or 101.
        num_classes: Classes; there is none for the background.
    """
    return RetinaNet(DEPTHS[depth], num_classes)


__all__ = ["Detector", "FasterRCNN", "RetinaNet", "faster_rcnn", "retinanet"]
