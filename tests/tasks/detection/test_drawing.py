"""Boxes on pictures."""

import numpy as np
import torch
from PIL import Image

from qdrop.models.detection.boxes import Detection
from qdrop.tasks.detection.drawing import GAP, side_by_side


def test_each_side_has_the_boxes_of_its_network_and_none_that_are_not_sure():
    picture = Image.new("RGB", (100, 80))
    boxes = torch.tensor([[-20.0, 30, 60, 70], [40, 10, 300, 60]])
    one = Detection(boxes=boxes, scores=torch.tensor([0.9, 0.1]), labels=torch.tensor([0, 1]))
    none = Detection(boxes=boxes[:0], scores=torch.empty(0), labels=torch.empty(0, dtype=torch.int64))
    drawn = np.asarray(side_by_side(picture, one, none, ["cat", "dog"]))
    assert drawn.shape == (80, 200 + GAP, 3)
    left, right = drawn[:, :100], drawn[:, 100 + GAP :]
    assert not right.any() and left[30, 40].any() and not left[40:60, 62:].any()
