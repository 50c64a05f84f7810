"""The region proposal network (Ren et al., *Faster R-CNN*, NeurIPS 2015, section 3.1): boxes worth a closer look."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdrop.models.detection.anchors import RATIOS, anchors
from qdrop.models.detection.boxes import Size, best_boxes, decode, not_empty
from qdrop.models.detection.pyramid import CHANNELS

STRIDES = (4, 8, 16, 32, 64)
SCALES = (8.0,)
PER_LEVEL = 1000
"""Proposals of a level before overlapping ones are dropped."""
PROPOSALS = 1000
"""Proposals of an image."""
OVERLAP = 0.7


class RPNHead(nn.Module):
    """A score and a box for each anchor of each level."""

    def __init__(self) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(CHANNELS, CHANNELS, kernel_size=3, padding=1)
        self.rpn_cls = nn.Conv2d(CHANNELS, len(RATIOS), kernel_size=1)
        self.rpn_reg = nn.Conv2d(CHANNELS, 4 * len(RATIOS), kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels `[N, 256, H, W]` -> scores `[N, A, H, W]` and deltas `[N, 4 * A, H, W]` of each."""
        hidden = [self.rpn_conv(level).relu() for level in levels]
        return [self.rpn_cls(x) for x in hidden], [self.rpn_reg(x) for x in hidden]


def proposals(scores: Sequence[Tensor], deltas: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    """The proposals of one image, best first.

    Args:
        scores: Of each level `[A, H, W]`, before the sigmoid.
        deltas: Of each level `[4 * A, H, W]`.
        size: Of the image, without padding.

    Returns:
        Boxes `[P, 4]` and their scores `[P]`, 0 to 1.
    """
    boxes, found, levels = [], [], []
    for level, (score, delta, stride) in enumerate(zip(scores, deltas, STRIDES, strict=True)):
        flat = score.permute(1, 2, 0).flatten().sigmoid()  # [H * W * A]
        best = flat.sort(descending=True).indices[:PER_LEVEL]
        of_anchor = delta.permute(1, 2, 0).reshape(-1, 4)
        boxes.append(decode(anchors(score, stride, SCALES)[best], of_anchor[best], size))
        found.append(flat[best])
        levels.append(torch.full_like(best, level))
    box, score, level_of = torch.cat(boxes), torch.cat(found), torch.cat(levels)
    real = not_empty(box)
    box, score, level_of = box[real], score[real], level_of[real]
    kept = best_boxes(box, score, level_of, OVERLAP, PROPOSALS)
    return box[kept], score[kept]
