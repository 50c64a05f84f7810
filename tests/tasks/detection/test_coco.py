"""Annotation files as they should be, and as they should not."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from qdrop.models.detection.boxes import Detection
from qdrop.tasks.detection.coco import CocoImages
from qdrop.tasks.images import DataError


def box(number, image=7, category=90, bbox=(1, 2, 3, 4), **others):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), **others}


@pytest.fixture
def data(tmp_path):
    """A function that writes a data set, changed as asked for, and reads it."""
    folder = tmp_path / "val2017"
    folder.mkdir()
    pixels = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    Image.fromarray(pixels).save(folder / "grey.jpg")
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(folder / "cmyk.jpg")

    def read(**changes):
        content = {
            "images": [
                {"id": 7, "file_name": "grey.jpg", "width": 30, "height": 20},
                {"id": 3, "file_name": "cmyk.jpg", "width": 30, "height": 20},
            ],
            "annotations": [box(1), box(2, category=5, area=6.5, iscrowd=1)],
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 5, "name": "airplane"}],
        } | changes
        file = tmp_path / "instances_val2017.json"
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return CocoImages.read(folder, file)

    return read


def test_pictures_boxes_and_classes(data):
    coco = data()
    assert (len(coco), coco.names, coco.ids) == (2, ["airplane", "toothbrush"], [7, 3])
    target = coco.target(0)
    assert target["boxes"].tolist() == [[1, 2, 4, 6]] * 2
    assert (target["labels"].tolist(), target["area"].tolist(), target["iscrowd"].tolist()) == (
        [1, 0],
        [12, 6.5],
        [0, 1],
    )
    assert coco.target(1)["boxes"].shape == (0, 4)


def test_grey_and_cmyk_become_rgb(data):
    coco = data()
    assert [coco.load(index).mode for index in range(2)] == ["RGB", "RGB"]
    red = np.asarray(coco.load(1)).mean((0, 1))
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


def test_results_have_the_ids_of_the_file(data):
    found = Detection(boxes=torch.tensor([[1.0, 2, 4, 6]]), scores=torch.tensor([0.5]), labels=torch.tensor([1]))
    assert data().results([(1, found)]) == [{"image_id": 3, "category_id": 90, "bbox": [1, 2, 3, 4], "score": 0.5}]


def test_boxes_without_area_or_outside_are_left_out(data, caplog):
    boxes = [box(1), box(2, bbox=(1, 1, 0, 5)), box(3, bbox=(40, 0, 5, 5)), box(4, bbox=(25, 15, 50, 50))]
    assert len(data(annotations=boxes).target(0)["boxes"]) == 2
    assert len(caplog.messages) == 1
    assert "2 boxes have no area, or lie outside" in caplog.text and "annotation 2, annotation 3" in caplog.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": None}, "no list images; expected images, annotations, categories"),
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 1}]}, "an entry without 'file_name'"),
        ({"images": [{"id": 7, "file_name": "gone.jpg"}]}, "lacks 1 of the 1 images of .*: gone.jpg"),
        ({"annotations": [box(4, image=8)]}, "annotation 4 is of image 8, which the file does not list"),
        ({"annotations": [box(4, category=6)]}, "annotation 4 is of category 6, which the file does not list"),
        ({"annotations": [box(4, bbox=(1, 2, 3))]}, r"annotation 4 has the box \[1, 2, 3\]; expected"),
        ({"annotations": [{"id": 4, "image_id": 7, "category_id": 5}]}, "an entry without 'bbox'"),
        ({"annotations": [3]}, "not in COCO's format"),
        ({"categories": "airplane"}, "no list categories"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(data, changes, told):
    with pytest.raises(DataError, match=told) as caught:
        data(**changes)
    assert "instances_val2017.json" in str(caught.value) and "\n" not in str(caught.value)


def test_no_annotations_and_no_json(tmp_path):
    file = tmp_path / "annotations.json"
    with pytest.raises(DataError, match=f"no file {file}"):
        CocoImages.read(tmp_path, file)
    file.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        CocoImages.read(tmp_path, file)


def test_a_picture_of_another_size_than_its_annotations(data):
    coco = data(images=[{"id": 7, "file_name": "grey.jpg", "width": 20, "height": 30}])
    with pytest.raises(DataError, match=r"grey\.jpg measures 30x20, its annotations are for 20x30"):
        coco.load(0)
