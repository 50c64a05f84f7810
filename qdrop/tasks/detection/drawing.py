"""Pictures with the boxes that two networks found in them, side by side."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from qdrop.models.detection.boxes import Detection

SURE = 0.3
"""Boxes with a lower score are not drawn."""
COLORS = ("#d1605e", "#3a76af", "#6a9f58", "#e7ca60", "#a87c9f", "#f1a2a9", "#967662", "#85b6b2")
"""Of classes, in turn."""
GAP = 8
"""Pixels between the two pictures."""


def side_by_side(picture: Image.Image, left: Detection, right: Detection, names: Sequence[str]) -> Image.Image:
    """A picture twice, the surer boxes of one network in the left one, of another in the right one.

    Args:
        picture: RGB.
        left: What one network found, in pixels of the picture.
        right: What the other found.
        names: Names of the classes.
    """
    pixels = pil_to_tensor(picture)  # [3, H, W] uint8
    gap = pixels.new_full((3, picture.height, GAP), 255)
    return to_pil_image(torch.cat((_drawn(pixels, left, names), gap, _drawn(pixels, right, names)), 2))


def _drawn(pixels: Tensor, found: Detection, names: Sequence[str]) -> Tensor:
    """[3, H, W] uint8 with boxes, class and score in percent."""
    sure = found["scores"] >= SURE
    if not sure.any():
        return pixels
    height, width = pixels.shape[1:]
    last = torch.tensor([width - 1, height - 1, width - 1, height - 1])
    boxes = torch.minimum(found["boxes"][sure].clamp(min=0), last)
    labels, scores = found["labels"][sure].tolist(), found["scores"][sure].tolist()
    texts = [f"{names[label]} {score:.0%}" for label, score in zip(labels, scores, strict=True)]
    return draw_bounding_boxes(pixels, boxes, texts, [COLORS[label % len(COLORS)] for label in labels], width=2)
