"""torchvision's own detectors: what lies between preparation and boxes is quantized, the rest stays torchvision's.

detector = TorchvisionDetector(fasterrcnn_resnet50_fpn(weights="DEFAULT"))
quantized, report = qdrop.quantize(detector.features(), batches)
detector.use_features(quantized)
boxes = detector(images)
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qdrop.models.detection.boxes import Detection, Size
from qdrop.quantization.state import holding

COCO_LABELS = 91
"""Classes of torchvision's own weights, background and unused ids included."""
UNUSED = frozenset([0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83])
"""Of these the ones that no object has: ids that COCO's 80 categories leave out, and the background."""


class FeaturesAndHead(nn.Module):
    """A backbone with its pyramid, and the head that reads it: images to both, as one network.

    Args:
        backbone: Prepared images [N, 3, H, W] to a map, or a dict of maps.
        head: A list of maps to whatever it predicts.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Images [N, 3, H, W] to `features`, a dict of maps, and `head`, what the head makes of them."""
        features = self.backbone(images)
        levels = {"0": features} if isinstance(features, Tensor) else dict(features)
        return {"features": levels, "head": self.head(list(levels.values()))}


class _Given(nn.Module):
    """Gives a value, whatever it is asked for."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Any) -> Any:
        return self.value


class _Together(nn.Module):
    """A backbone that also does the work of the head behind it, which then only hands over what was found."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.head = _Given()

    def forward(self, images: Tensor) -> Any:
        found = self.network(images)
        self.head.value = found["head"]
        return found["features"]


class TorchvisionDetector(nn.Module):
    """A detector of torchvision whose inner part can be taken out, and a quantized one put in.

    Args:
        model: Faster, Mask or Keypoint R-CNN, RetinaNet, FCOS or SSD.
        heads: Whether the head that reads the maps is part of what is quantized; of an R-CNN that of its proposals. The
            boxes that these propose are looked at in full precision.
    """

    def __init__(self, model: nn.Module, heads: bool = False) -> None:
        super().__init__()
        self.model, self.heads = model, heads
        labels = _labels(model)
        self._labels = [i for i in range(labels) if i not in (UNUSED if labels == COCO_LABELS else {0})]

    @property
    def num_classes(self) -> int:
        """Of what :meth:`decode` finds; there is none for the background."""
        return len(self._labels)

    @property
    def divisor(self) -> int:
        """Sides of a batch are multiples of it: 1 for SSD, whose images are all of one size."""
        transform: Any = self.model.transform
        return int(transform.size_divisible)

    @property
    def _holder(self) -> nn.Module:
        """What has the head as its attribute."""
        rpn = getattr(self.model, "rpn", None)
        return self.model if rpn is None else rpn

    def features(self) -> nn.Module:
        """What is quantized: prepared images [N, 3, H, W] to maps, and with `heads` to what the head makes of them."""
        backbone: Any = self.model.backbone
        return FeaturesAndHead(backbone, self._holder.head) if self.heads else backbone  # type: ignore[arg-type]

    def use_features(self, features: nn.Module) -> None:
        """Take a quantized :meth:`features` in the place of the own."""
        if self.heads:
            features = _Together(features)
            self._holder.head = features.head
        self.model.backbone = features

    def forward(self, images: Sequence[Tensor]) -> list[Detection]:
        """Detections in pictures, RGB [3, H, W] each, 0 to 1, with torchvision's labels."""
        found: list[Detection] = self.model(list(images))
        return found

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """A picture, RGB [3, H, W], uint8 or 0 to 1, as torchvision prepares it; new width and height over the old."""
        transform: Any = self.model.transform
        pixels = image / 255 if image.dtype == torch.uint8 else image
        resized, _ = transform.resize(transform.normalize(pixels))
        return resized, torch.tensor([resized.shape[axis] / image.shape[axis] for axis in (2, 1)])

    @torch.no_grad()
    def decode(self, outputs: Any, sizes: Sequence[Size], scales: Sequence[Tensor]) -> list[Detection]:
        """Boxes in the pixels of the pictures, labels from 0 without gaps.

        Args:
            outputs: What :meth:`features` gave for a batch.
            sizes: Of its images without padding.
            scales: Width and height of each over those of the picture.
        """
        features = outputs["features"] if self.heads else outputs
        with ExitStack() as scopes:
            scopes.enter_context(holding([self.model], "backbone", _Given(features)))
            scopes.enter_context(holding([self.model], "transform", _Prepared(sizes, scales, self.divisor)))
            if self.heads:
                scopes.enter_context(holding([self._holder], "head", _Given(outputs["head"])))
            found = self.model([torch.empty(3, 0, 0) for _ in sizes])
        return [self._relabelled(here) for here in found]

    def _relabelled(self, found: Mapping[str, Tensor]) -> Detection:
        number = {label: i for i, label in enumerate(self._labels)}
        known = torch.tensor([int(label) in number for label in found["labels"]], dtype=torch.bool)
        labels = torch.tensor([number[int(label)] for label in found["labels"][known]], dtype=torch.long)
        return Detection(
            boxes=found["boxes"][known], scores=found["scores"][known], labels=labels.to(found["boxes"].device)
        )


class _Prepared(nn.Module):
    """In the place of a detector's transform, for images that were prepared before."""

    def __init__(self, sizes: Sequence[Size], scales: Sequence[Tensor], divisor: int) -> None:
        super().__init__()
        self._sizes, self._scales, self._divisor = list(sizes), scales, divisor

    def forward(self, images: Any, targets: None) -> tuple[Any, None]:
        """The sizes, in the form that torchvision has; no pixel is needed any more."""
        from torchvision.models.detection.image_list import ImageList

        height, width = (-(-max(sides) // self._divisor) * self._divisor for sides in zip(*self._sizes, strict=True))
        return ImageList(torch.empty(len(self._sizes), 3, height, width, device="meta"), self._sizes), targets

    def postprocess(self, found: list[dict[str, Tensor]], sizes: Any, original_sizes: Any) -> list[dict[str, Tensor]]:
        """Boxes in the pixels of the pictures."""
        boxes = [
            here["boxes"] / scale.to(here["boxes"]).repeat(2) for here, scale in zip(found, self._scales, strict=True)
        ]
        return [here | {"boxes": box} for here, box in zip(found, boxes, strict=True)]


def _labels(model: nn.Module) -> int:
    """How many labels a detector has, the background included."""
    heads = (("roi_heads", "box_predictor", "cls_score"), ("head", "classification_head"))
    for path in heads:
        found: Any = model
        for name in path:
            found = getattr(found, name, None)
        if found is not None:
            return int(getattr(found, "out_features", None) or getattr(found, "num_classes", None) or found.num_columns)
    raise TypeError(f"a {type(model).__name__} is no detector of torchvision")
