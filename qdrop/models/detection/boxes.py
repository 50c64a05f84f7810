"""Boxes as x1, y1, x2, y2 in pixels: from what a head predicts to what is found."""

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

LARGEST = math.log(1000 / 16)
"""Limit of a predicted log size, on both sides."""

Size = tuple[int, int]
"""Height and width of an image in pixels."""


class Detection(TypedDict):
    """What is found in one image, best first."""

    boxes: Tensor
    """`[K, 4]`, x1, y1, x2, y2 in pixels."""
    scores: Tensor
    """`[K]`, 0 to 1."""
    labels: Tensor
    """`[K]`, numbers of classes from 0."""


def decode(boxes: Tensor, deltas: Tensor, size: Size, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes moved and stretched (Girshick et al., *R-CNN*, CVPR 2014, appendix C), clipped to the image.

    Args:
        boxes: What deltas refer to `[..., 4]`.
        deltas: Shift of the centre in widths and heights, logs of the factors of both `[..., 4]`.
        size: Of the image, without padding.
        stds: What deltas are multiplied by.

    Returns:
        `[..., 4]`.
    """
    shift, stretch = (deltas * deltas.new_tensor(stds)).split(2, dim=-1)
    start, end = boxes.split(2, dim=-1)
    extent = end - start
    centre = (start + end) / 2 + extent * shift
    half = extent * stretch.clamp(-LARGEST, LARGEST).exp() / 2
    height, width = size
    limit = deltas.new_tensor([width, height])
    return torch.cat([centre - half, centre + half], dim=-1).clamp(min=0).minimum(limit.repeat(2))


def best_boxes(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, count: int) -> Tensor:
    """Numbers of the best boxes, best first: of two in a group that overlap by more than `overlap` the better one.

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`.
        groups: Their classes or levels `[K]`.
        overlap: Intersection over union, 0 to 1.
        count: At most so many.
    """
    from torchvision.ops import batched_nms  # slow to import, and only needed here

    return batched_nms(boxes, scores, groups, overlap)[:count]


def not_empty(boxes: Tensor) -> Tensor:
    """Whether boxes have an area `[K]`."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def detection(boxes: Tensor, scores: Tensor, labels: Tensor, scale: Tensor, overlap: float, count: int) -> Detection:
    """The best boxes of an image, in pixels of the picture as it was.

    Args:
        boxes: In the prepared image `[K, 4]`.
        scores: `[K]`.
        labels: `[K]`.
        scale: Prepared width and height over those of the picture `[2]`.
        overlap: See :func:`best_boxes`.
        count: See :func:`best_boxes`.
    """
    boxes = boxes / scale.to(boxes).repeat(2)
    best = best_boxes(boxes, scores, labels, overlap, count)
    return Detection(boxes=boxes[best], scores=scores[best], labels=labels[best])
