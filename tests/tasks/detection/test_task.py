"""Detectors from settings to figures: data, checks, what a run leaves, evaluation of its files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from qdrop.commands.evaluate import evaluate
from qdrop.config import config_from_dict
from qdrop.models import BUILDERS, ModelError, build_model
from qdrop.runs.run_folder import MODEL
from qdrop.solver.main_imagenet import run
from qdrop.tasks.detection.data import training_pictures
from qdrop.tasks.images import DataError
from qdrop.tasks.task import make_task


def config(coco, type="squares", **data):
    """Settings of a short run on a data set."""
    return config_from_dict(
        {
            "quant": {
                "a_qconfig": {"bit": 8},
                "w_qconfig": {"bit": 8},
                "calibrate": 4,
                "recon": {"iters": 2, "batch_size": 2},
            },
            "model": {"type": type, "path": None},
            "data": {"type": "coco", "path": str(coco), "num_workers": 0, "batch_size": 4, "augment": False, **data},
            "process": {"device": "cpu"},
        }
    )


@pytest.fixture
def finished(coco, squares, tmp_path):
    """A run, its folder, and its data."""
    settings = config(coco)
    return run(settings, tmp_path / "run"), tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "ssd300_vgg16", "retinanet_resnet50_fpn"])
def test_a_detector_of_torchvision_by_config(name, coco, tmp_path):
    settings = config(coco, f"torchvision:{name}", batch_size=2)
    # RetinaNet's untrained scores are 0.01, by the bias that it starts from: below what it takes for a box.
    small = {"min_size": 64, "score_thresh": 0.0} if "retinanet" in name else {}
    kwargs = {"num_classes": 3, "heads": True} | small
    settings = replace(settings, model=replace(settings.model, kwargs=kwargs))
    settings = replace(settings, quant=replace(settings.quant, recon=None))
    result = run(settings, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "detections.json").read_text())
    assert len(found) > 0 and {box["image_id"] for box in found} <= set(range(6))
    again, images, _ = evaluate(tmp_path / "run")
    assert again == result.outcome and images == 6


def test_a_run_by_config(finished):
    result, folder = finished
    assert list(result.outcome) == ["AP", "AP50", "AP75"]
    assert result.full["AP"] == pytest.approx(100) and result.outcome["AP"] == pytest.approx(100)
    assert result.validation_images == 6
    recorded = json.loads((folder / "result.json").read_text())
    assert recorded["AP_full"] == pytest.approx(100) and recorded["AP50"] == pytest.approx(100)
    found = json.loads((folder / "detections.json").read_text())
    assert len(found) == 6 * 4 and found[0].keys() == {"image_id", "category_id", "bbox", "score"}
    best = max((box for box in found if box["image_id"] == 3), key=lambda box: box["score"])
    assert best["bbox"] == [16, 20, 16, 20] and best["category_id"] == 5
    drawn = sorted((folder / "pictures").iterdir())
    assert len(drawn) == 6
    assert Image.open(drawn[0]).size == (2 * 20 + 8, 40)


def test_its_files_are_evaluated(finished, coco):
    pytest.importorskip("onnxruntime")
    from qdrop.export.__main__ import write_onnx
    from qdrop.export.options import Container

    result, folder = finished
    assert evaluate(folder)[0] == result.outcome
    exported = write_onnx(folder / MODEL, Container.INT8)
    figures, images, _ = evaluate(exported, [f"data.path={coco}"])
    assert figures == pytest.approx(result.outcome) and images == 6


def test_pictures_to_calibrate_on_are_chosen_by_the_seed(coco, squares):
    task = make_task(config(coco))
    task.network(build_model(squares))
    first, again, other = (task.calibration(4, seed) for seed in (1, 1, 2))
    assert first.shape == (4, 3, 32, 32) and torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(DataError, match="calibration needs 7 images, found 6"):
        task.calibration(7, 0)


def test_a_picture_that_cannot_be_read_is_left_out(coco, squares, caplog):
    (coco / "val2017" / "2.png").write_bytes(b"no picture")
    task = make_task(config(coco))
    network = task.network(build_model(squares))
    assert task.evaluate(network, torch.device("cpu"))["AP"] == pytest.approx(100)
    assert "1 of 6 images cannot be read, left out of the average precision: 2.png" in caplog.text


def test_the_other_layout_and_a_part_of_the_pictures(coco, squares):
    for old, new in (("val2017", "val"), ("train2017", "train"), ("annotations/instances_val2017.json", "val.json")):
        (coco / old).rename(coco / new)
    settings = config(coco, val_limit=3)
    assert make_task(settings).size == 3
    assert training_pictures(settings.data).root == coco / "train"


def test_grey_and_cmyk_pictures(coco, squares):
    pixels = np.asarray(Image.open(coco / "val2017" / "0.png"))
    Image.fromarray(pixels[..., 0]).save(coco / "val2017" / "0.png")
    cmyk = Image.open(coco / "val2017" / "1.png").convert("CMYK")
    cmyk.save(coco / "val2017" / "1.jpg")
    file = coco / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace("1.png", "1.jpg"))
    task = make_task(config(coco))
    network = task.network(build_model(squares))
    assert task.evaluate(network, torch.device("cpu"))["AP"] > 99


@pytest.mark.parametrize(
    ("remove", "told"),
    [
        ("annotations/instances_val2017.json", "no file .*instances_val2017.json"),
        ("val2017", "is no data set in COCO's format: it holds no val2017 with annotations/instances_val2017.json"),
        ("train2017", "train2017 holds no images: those to calibrate on"),
    ],
)
def test_what_is_missing_is_named(coco, squares, remove, told):
    (coco / remove).rename(coco.parent / "elsewhere")
    with pytest.raises(DataError, match=told):
        make_task(config(coco))
        training_pictures(config(coco).data)


def test_no_path():
    with pytest.raises(DataError, match=r"data\.path is not set"):
        make_task(config_from_dict({"data": {"type": "coco"}}))


def test_a_classifier_is_no_detector(coco):
    task = make_task(config(coco, "digits_resnet"))
    with pytest.raises(ModelError, match=r"model\.type = digits_resnet is no detector"):
        task.network(build_model("digits_resnet"))


def test_as_many_categories_as_the_network_has_classes(coco, squares, monkeypatch):
    task = make_task(config(coco))
    model = build_model(squares)
    monkeypatch.setattr(model, "num_classes", 80)
    with pytest.raises(DataError, match="the annotations have 2 categories, the network 80 classes"):
        task.check(task.network(model))


def test_pictures_of_several_sizes_come_in_batches_of_alike_ones(coco, squares, monkeypatch):
    monkeypatch.setattr(BUILDERS[squares], "prepare", lambda self, image: (image.float() / 255, torch.ones(2)))
    settings = config(coco)
    settings = replace(settings, quant=replace(settings.quant, calibrate=6, calibrate_batch=2))
    task = make_task(settings)
    task.network(build_model(squares))
    shapes = [tuple(batch.shape) for batch in task.calibration(6, 0)]
    assert [count for count, *_ in shapes] == [2, 2, 1, 1] and shapes[-1] == (1, 3, 64, 64)  # 40x40; others are upright
    assert all(height == 64 and width in (32, 64) for *_, height, width in shapes)
