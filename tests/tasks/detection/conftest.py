"""A data set of a few small pictures in COCO's layout, and a detector of two layers."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from qdrop.models.detection.boxes import detection
from qdrop.models.registry import BUILDERS

SIDE = 32


class Squares(nn.Module):
    """Finds bright squares: a box for each cell of 16x16 pixels, its score the brightness of the cell."""

    num_classes = 2
    divisor = SIDE

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.ReLU())
        self.head = nn.Conv2d(4, 2, 1)
        for layer in (self.block[0], self.head):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            nn.init.zeros_(layer.bias)
        self.head.weight.data[1] = 0

    def forward(self, images):
        """[N, 3, 32, 32] -> the brightness as the score of class 0, and nothing for class 1: [N, 2, 2, 2]."""
        return {"scores": self.head(self.block(images))}

    def features(self):
        return self

    def prepare(self, image):
        resized = nn.functional.interpolate(image[None].float() / 255, (SIDE, SIDE))[0]
        return resized, torch.tensor([SIDE / image.shape[2], SIDE / image.shape[1]])

    def decode(self, outputs, sizes, scales):
        corners = torch.tensor([[0.0, 0, 16, 16], [16, 0, 32, 16], [0, 16, 16, 32], [16, 16, 32, 32]])
        of_images = zip(outputs["scores"].flatten(2)[:, 0], scales, strict=True)
        return [detection(corners, one, torch.zeros(4, dtype=torch.int64), scale, 0.5, 4) for one, scale in of_images]


@pytest.fixture
def squares(monkeypatch):
    """The name of the detector."""
    monkeypatch.setitem(BUILDERS, "squares", Squares)
    return "squares"


@pytest.fixture
def coco(tmp_path):
    """A data set with a bright square in each picture but the last, which has no box."""
    root = tmp_path / "coco"
    images, annotations = [], []
    for folder in ("train2017", "val2017"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        width, height = 20 + 4 * number, 40  # each of another size
        picture = Image.new("RGB", (width, height))
        column, row = number % 2, number // 2 % 2
        box = [column * width // 2, row * height // 2, width // 2, height // 2]
        if number < 5:
            picture.paste((255, 255, 255), (box[0], box[1], box[0] + box[2], box[1] + box[3]))
            annotations.append({"id": number + 1, "image_id": number, "category_id": 5, "bbox": box})
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        picture.save(root / "val2017" / f"{number}.png")
        picture.save(root / "train2017" / f"{number}.png")
    categories = [{"id": 5, "name": "square"}, {"id": 9, "name": "circle"}]
    (root / "annotations").mkdir()
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root
