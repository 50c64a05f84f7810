"""Yolo-FastestV2: its outputs, its boxes, and what qdrop makes of it."""

import math

import pytest
import torch

from qdrop.graph.capture import capture
from qdrop.models.yolo_fastestv2 import ShuffleUnit, YoloFastestV2, anchor_boxes


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return YoloFastestV2().eval()


def test_outputs_of_both_levels_by_name(network):
    with torch.no_grad():
        outputs = network(torch.rand(2, 3, 64, 96))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "boxes_16": (2, 12, 4, 6),
        "objectness_16": (2, 3, 4, 6),
        "classes_16": (2, 80, 4, 6),
        "boxes_32": (2, 12, 2, 3),
        "objectness_32": (2, 3, 2, 3),
        "classes_32": (2, 80, 2, 3),
    }


def test_a_unit_leaves_the_even_channels_as_they_are():
    unit = ShuffleUnit(8, 8, stride=1).eval()
    x = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        assert torch.equal(unit(x)[:, :4], x[:, 0::2])


def silent(height, width):
    """Outputs for one image in which nothing is found: every sigmoid is near 0."""
    shapes = {"boxes": 12, "objectness": 3, "classes": 80}
    return {
        f"{name}_{stride}": torch.full((1, count, height // stride, width // stride), -20.0)
        for stride in (16, 32)
        for name, count in shapes.items()
    }


def test_a_box_by_hand():
    outputs = silent(64, 96)
    row, column, anchor = 2, 3, 1
    outputs["boxes_16"][0, 4:8, row, column] = torch.tensor([0.0, math.log(3), 0.0, math.log(3)])  # 1/2, 3/4, ...
    outputs["objectness_16"][0, anchor, row, column] = math.log(4)  # 0.8
    outputs["classes_16"][0, 7, row, column] = 20.0
    boxes, scores = anchor_boxes(outputs)
    assert boxes.shape == (1, 3 * (4 * 6 + 2 * 3), 4) and scores.shape == (1, 90, 80)
    best = int(scores[0].flatten().argmax())
    assert best % 80 == 7 and scores[0].max() == pytest.approx(0.8, abs=1e-4)
    centre = (16 * (2 * 0.5 - 0.5 + column), 16 * (2 * 0.75 - 0.5 + row))
    size = (37.88 * 1.0, 51.48 * 1.5**2)
    left, top, right, bottom = boxes[0, best // 80].tolist()
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx(centre)
    assert (right - left, bottom - top) == pytest.approx(size)


def test_detections_are_in_the_pixels_of_the_picture(network):
    outputs = silent(64, 96)
    for column in (2, 3):  # at 0.8 and 0.2 of the scores
        outputs["boxes_16"][0, :4, 1, column] = 0.0  # sigmoid 1/2: in the middle of the cell, as large as the anchor
        outputs["objectness_16"][0, 0, 1, column] = math.log(4 if column == 2 else 1 / 4)
        outputs["classes_16"][0, 7, 1, column] = 20.0
    (found,) = network.decode(outputs, [(64, 96)], [torch.tensor([0.5, 2.0])])
    assert found["labels"].tolist() == [7, 7] and found["scores"].tolist() == pytest.approx([0.8, 0.2], abs=1e-4)
    left, top, right, bottom = found["boxes"][0].tolist()
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((40 / 0.5, 24 / 2))
    assert (right - left, bottom - top) == pytest.approx((12.64 / 0.5, 19.39 / 2))


def test_a_picture_is_squashed_and_its_channels_turned_round(network):
    picture = torch.zeros(3, 176, 704, dtype=torch.uint8)
    picture[0] = 255
    image, scale = network.prepare(picture)
    assert image.shape == (3, 352, 352) and image.mean((1, 2)).tolist() == [0, 0, 1]
    assert scale.tolist() == [0.5, 2]


def test_it_is_captured_whole(network):
    graph = capture(network, torch.rand(2, 3, 64, 64))
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        expected, found = network(images), graph(images)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
