"""The four published detectors against numbers of mmdetection 2.28: layouts, maps, heads, anchors, boxes."""

from functools import cache

import numpy as np
import pytest
import torch
from golden import GOLDEN_DETECTORS, fill_detector, load_fixture

from qdrop.models import build_model
from qdrop.models.detection import box_head, rpn
from qdrop.models.detection import retina_head as retina
from qdrop.models.detection.anchors import anchors, base_anchors
from qdrop.models.detection.boxes import decode
from qdrop.models.detection.preparation import prepare, resized, together

FAST = ["faster_rcnn_r50_fpn_2x", "retinanet_r50_fpn_2x"]
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in GOLDEN_DETECTORS]
FASTER = [param for param in NAMES if param.values[0].startswith("faster")]
SIZE = (160, 192)
ONE = torch.ones(2)


def image():
    values = np.random.RandomState(0).standard_normal((1, 3, *SIZE))
    return torch.from_numpy(values.astype(np.float32))


@cache
def detector(name):
    return fill_detector(build_model(GOLDEN_DETECTORS[name]))


@cache
def levels(name):
    with torch.no_grad():
        maps = detector(name).backbone(image())
        return maps, detector(name).neck(maps)


def check(tensor, expected):
    """A map against the sample of the fixture, to 1e-5 of its spread."""
    assert list(tensor.shape) == expected["shape"]
    limit = 1e-5 * expected["std"]
    assert tensor.std(correction=0).item() == pytest.approx(expected["std"], rel=1e-5)
    assert tensor.mean().item() == pytest.approx(expected["mean"], abs=limit)
    values = tensor.flatten()[torch.tensor(expected["flat_indices"])]
    torch.testing.assert_close(values, torch.tensor(expected["values"]), rtol=1e-6, atol=limit)


def check_all(tensors, expected):
    for tensor, sample in zip(tensors, expected.values(), strict=True):
        check(tensor, sample)


@pytest.mark.parametrize("name", GOLDEN_DETECTORS)
def test_layout(name):
    with torch.device("meta"):
        state = build_model(GOLDEN_DETECTORS[name]).state_dict()
    expected = load_fixture("detection_layouts")["models"][name]["shapes"]
    assert {key: list(tensor.shape) for key, tensor in state.items()} == expected


@pytest.mark.parametrize("name", NAMES)
def test_maps_and_heads(name):
    expected = load_fixture("detection_outputs")["models"][name]
    maps, pyramid = levels(name)
    check_all(maps, expected["backbone"])
    check_all(pyramid, expected["fpn"])
    with torch.no_grad():
        head = detector(name).rpn_head if name.startswith("faster") else detector(name).bbox_head
        scores, deltas = head(pyramid)
    check_all(scores, expected.get("rpn_cls", expected.get("cls")))
    check_all(deltas, expected.get("rpn_reg", expected.get("reg")))


@pytest.mark.parametrize("name", FASTER)
def test_box_head(name):
    expected = load_fixture("detection_outputs")["models"][name]["fixed_proposals"]
    boxes = torch.tensor(expected["boxes_x1y1x2y2"])
    with torch.no_grad():
        rois = box_head.roi_features(levels(name)[1], [boxes])
        scores, deltas = detector(name).roi_head.bbox_head(rois)
    assert box_head.level_of(boxes).tolist() == expected["level_index_0_is_P2"]
    for roi, sample in zip(rois, expected["roi_features"], strict=True):
        check(roi, sample)
    check(scores, expected["cls_score"])
    check(deltas, expected["bbox_pred"])


@pytest.mark.parametrize("name", FAST)
def test_anchors(name):
    expected = load_fixture("detection_outputs")["models"][name]["anchors"]
    source = rpn if name.startswith("faster") else retina
    found = [
        anchors(level, stride, source.SCALES) for level, stride in zip(levels(name)[1], source.STRIDES, strict=True)
    ]
    assert list(map(len, found)) == expected["per_level_count"]
    first, last = expected["first_base_anchors"].values()
    for stride, boxes in ((source.STRIDES[0], first), (source.STRIDES[-1], last)):
        torch.testing.assert_close(base_anchors(stride, source.SCALES), torch.tensor(boxes), rtol=1e-6, atol=1e-4)
    for sample in expected["sample"]:
        assert found[sample["level"]][sample["row"]].tolist() == pytest.approx(sample["box"], rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_detections(name, rescaled):
    fixture = load_fixture("detection_outputs")["models"][name]["detections"]
    expected = fixture["clipped_and_rescaled" if rescaled else "plain"]
    model, before = detector(name), {}
    state = model.state_dict()
    for key, change in fixture["changed_tensors"].items():
        before[key] = state[key].clone()
        state[key].mul_(change.get("mul", 1)).add_(change.get("add", 0))
    try:
        size, scale = ((150, 190), ONE * 1.25) if rescaled else (SIZE, ONE)
        with torch.no_grad():
            (found,) = model.decode(levels(name)[1], [size], [scale])
            if "top20_proposals" in expected:
                boxes, scores = rpn.proposals(*([v[0] for v in out] for out in model.rpn_head(levels(name)[1])), size)
                assert len(boxes) == expected["number_of_proposals"]
                top = torch.cat([boxes, scores[:, None]], 1)[:20]
                torch.testing.assert_close(top, torch.tensor(expected["top20_proposals"]), rtol=0, atol=1e-3)
    finally:
        for key, tensor in before.items():
            state[key].copy_(tensor)
    assert len(found["boxes"]) == expected["number_of_detections"]
    best = expected["best20"]
    assert found["labels"][:20].tolist() == [b["label"] for b in best]
    torch.testing.assert_close(found["boxes"][:20], torch.tensor([b["box"] for b in best]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found["scores"][:20], torch.tensor([b["score"] for b in best]), rtol=0, atol=1e-5)


def test_box_coder():
    expected = load_fixture("detection_outputs")["box_coder"]
    boxes, deltas = torch.tensor(expected["rois"]), torch.tensor(expected["deltas"])
    for key, stds in (("1", (1.0,) * 4), ("0.1_0.1_0.2_0.2", (0.1, 0.1, 0.2, 0.2))):
        found = decode(boxes, deltas, SIZE, stds)
        wanted = torch.tensor(expected[f"decoded_stds_{key}_clip_160x192"])
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-4)


def test_level_of_a_proposal():
    expected = load_fixture("detection_outputs")["level_assignment"]
    sides = torch.tensor(expected["square_side"])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    assert box_head.level_of(boxes).tolist() == expected["level_index_0_is_P2"]


def test_preparation():
    expected = load_fixture("detection_outputs")["preprocessing"]
    for example in expected["size_examples_1333_800"]:
        assert list(resized(tuple(example["height_width"]))) == example["resized_height_width"]
    example = expected["numeric_example"]
    bgr = np.random.RandomState(5).randint(0, 256, (37, 53, 3)).astype(np.uint8)
    picture = torch.from_numpy(bgr).permute(2, 0, 1).flip(0)
    found, scale = prepare(picture, *example["target_scale_instead_of_1333x800"])
    batch = together([found])
    assert list(batch.shape[1:]) == example["padded_chw_shape"]
    assert scale.tolist() == pytest.approx(example["scale_factor"][:2], rel=1e-6)
    for channel, y, x, value in example["final_values_at_c_y_x"]:
        assert batch[0, channel, y, x].item() == pytest.approx(value, abs=1e-5)
    assert batch.mean().item() == pytest.approx(example["mean_of_final"], abs=1e-6)


def test_pictures_of_several_sizes():
    """Boxes of each picture are in its own pixels, whatever lies beside it in the batch."""
    model = detector("retinanet_r50_fpn_2x")
    generator = torch.Generator().manual_seed(0)
    pictures = [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in ((40, 90), (60, 60))
    ]
    prepared = [prepare(picture, 192, 96) for picture in pictures]
    sizes = [(p.shape[1], p.shape[2]) for p, _ in prepared]
    found = model.detect(together([p for p, _ in prepared]), sizes, [scale for _, scale in prepared])
    for detection, picture in zip(found, pictures, strict=True):
        assert len(detection["boxes"]) > 0
        assert (detection["boxes"].amax(0)[2:] <= torch.tensor([picture.shape[2], picture.shape[1]]) + 1e-3).all()
        assert (detection["scores"].diff() <= 0).all()
