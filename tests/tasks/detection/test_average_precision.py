"""COCO's figures on cases that can be worked out by hand."""

import sys

import pytest
import torch

from qdrop.extras import MissingPackageError
from qdrop.models.detection.boxes import Detection
from qdrop.tasks.detection.average_precision import MetricError, average_precision

TRUTH = torch.tensor([[10.0, 10, 50, 50], [60, 60, 90, 90]])
NOTHING = Detection(boxes=torch.empty(0, 4), scores=torch.empty(0), labels=torch.empty(0, dtype=torch.int64))


def target(boxes=TRUTH, label=3):
    return {"boxes": boxes, "labels": torch.full((len(boxes),), label)}


def found(boxes, scores, label=3):
    return Detection(boxes=boxes, scores=torch.tensor(scores), labels=torch.full((len(boxes),), label))


def test_all_boxes_found():
    assert average_precision([found(TRUTH, [0.9, 0.8])], [target()]) == pytest.approx(
        {"AP": 100, "AP50": 100, "AP75": 100}
    )


def test_half_of_them_found_and_a_box_a_little_off():
    half = average_precision([found(TRUTH[:1], [0.9])], [target()])["AP"]
    assert half == pytest.approx(100 * 51 / 101)  # precision 1 at the recalls 0 to 0.50 of 0 to 1.00
    shifted = TRUTH + torch.tensor([10.0, 0, 10, 0])  # IoU 30/50 and 20/40
    figures = average_precision([found(shifted, [0.9, 0.8])], [target()])
    assert figures["AP50"] == pytest.approx(100) and figures["AP75"] == 0


def test_images_without_boxes_count_through_what_is_found_in_them():
    empty = target(torch.empty(0, 4))
    sure = average_precision([found(TRUTH, [0.5, 0.4]), found(TRUTH[:1], [0.9])], [target(), empty])
    assert sure["AP"] == pytest.approx(100 * 2 / 3, abs=1)  # precision 2/3 once both are found
    assert average_precision([found(TRUTH, [0.5, 0.4]), NOTHING], [target(), empty])["AP"] == pytest.approx(100)


def test_nothing_found_and_another_class():
    assert average_precision([NOTHING], [target()])["AP"] == 0
    assert average_precision([found(TRUTH, [0.9, 0.8], label=4)], [target()])["AP"] == 0


def test_no_box_to_be_found():
    with pytest.raises(MetricError, match="no image has a box"):
        average_precision([NOTHING], [target(torch.empty(0, 4))])


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'qdrop\[coco\]'"):
        average_precision([NOTHING], [target()])


def test_it_prints_nothing(capsys):
    average_precision([found(TRUTH, [0.9, 0.8])], [target()])
    assert capsys.readouterr().out == ""
