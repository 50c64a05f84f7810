"""torchvision's detectors: their inner part is captured, quantized and put back, and they still find boxes."""

import pytest
import torch
from networks import bits

import qdrop
from qdrop.config import ReconConfig
from qdrop.graph.capture import capture
from qdrop.graph.plan import make_plan
from qdrop.models import build_model
from qdrop.models.detection.preparation import together

RCNN = {"box_score_thresh": 0.0, "box_detections_per_img": 5, "rpn_post_nms_top_n_test": 20}
DENSE = {"score_thresh": 0.0, "detections_per_img": 5}
SMALL = {"min_size": 64, "max_size": 96}
DETECTORS = {
    "ssdlite320_mobilenet_v3_large": DENSE,
    "fasterrcnn_resnet50_fpn": RCNN | SMALL,
    "fasterrcnn_resnet50_fpn_v2": RCNN | SMALL,
    "maskrcnn_resnet50_fpn": RCNN | SMALL,
    "retinanet_resnet50_fpn": DENSE | SMALL,
    "retinanet_resnet50_fpn_v2": DENSE | SMALL,
    "fcos_resnet50_fpn": DENSE | SMALL,
    "ssd300_vgg16": DENSE,
}
FAST = "ssdlite320_mobilenet_v3_large"
CASES = [
    pytest.param(name, heads, marks=[pytest.mark.slow] * ((name, heads) != (FAST, False)))
    for name in DETECTORS
    for heads in (True, False)
]


def pictures():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in ((48, 64), (64, 40), (50, 50))]


def batch_of(detector, images):
    prepared = [detector.prepare(image) for image in images]
    images, scales = zip(*prepared, strict=True)
    return together(images, detector.divisor), [tuple(image.shape[1:]) for image in images], scales


@pytest.mark.parametrize(("name", "heads"), CASES)
def test_quantized_and_put_back(name, heads):
    torch.manual_seed(0)
    detector = build_model(f"torchvision:{name}", DETECTORS[name] | {"heads": heads, "num_classes": 4})
    before = detector(pictures())
    batch, sizes, scales = batch_of(detector, pictures()[:2])
    features = detector.features()
    with torch.no_grad():
        outputs = features(batch)
    decoded = detector.decode(outputs, sizes, scales)
    assert detector.num_classes == 3
    for one, other in zip(decoded, detector(pictures()[:2]), strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=0, atol=1e-2)
        assert torch.equal(one["labels"] + 1, other["labels"])
    for one in decoded:
        assert len(one["boxes"]) > 0 and one["labels"].min() >= 0 and one["labels"].max() < 3

    graph = capture(features, batch)
    plan = make_plan(graph, bits(8, 8))
    layers = {spec.layer for spec in plan.quantizers if spec.kind == "weight"}
    assert any("head" in layer for layer in layers) == heads
    small = batch[:, :, :64, :64] if graph.meta["any_size"] else batch
    quantized, _ = qdrop.quantize(features, [batch, small], bits(8, 8))
    detector.use_features(quantized)
    after = detector(pictures())
    for one, other, picture in zip(before, after, pictures(), strict=True):
        assert set(one) == set(other) and len(other["boxes"]) > 0
        limit = torch.tensor([picture.shape[2], picture.shape[1]]).repeat(2) + 1e-3
        assert (other["boxes"] <= limit).all() and (other["boxes"] >= 0).all()
        # In 8 bits the scores are still those of full precision.
        torch.testing.assert_close(other["scores"].max(), one["scores"].max(), rtol=0.2, atol=0.02)


def test_labels_of_coco_are_numbered_without_gaps():
    with torch.device("meta"):
        detector = build_model(f"torchvision:{FAST}")
    assert detector.num_classes == 80


@pytest.mark.slow
def test_units_learn_on_batches_of_several_sizes():
    torch.manual_seed(0)
    detector = build_model("torchvision:retinanet_resnet50_fpn", DENSE | SMALL | {"num_classes": 4})
    batches = [batch_of(detector, [picture])[0] for picture in pictures()]
    assert len({batch.shape for batch in batches}) > 1
    config = bits(4, 4, placement="units", divide=["fpn"], recon=ReconConfig(iters=2))
    quantized, report = qdrop.quantize(detector.features(), batches, config)
    assert all(unit.loss_after > 0 for unit in report.units)
    detector.use_features(quantized)
    assert all(len(found["boxes"]) > 0 for found in detector(pictures()))
