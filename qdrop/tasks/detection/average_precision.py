"""Average precision as COCO defines it, computed by pycocotools.

figures = average_precision(detections, targets)        # {"AP": 15.4, "AP50": 28.8, "AP75": 14.0}
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qdrop.errors import QdropError
from qdrop.extras import extra
from qdrop.models.detection.boxes import Detection

FIGURES = ("AP", "AP50", "AP75")
"""Mean over IoU from 0.50 to 0.95, at 0.50, at 0.75: the first three figures of COCO's summary."""
Target = Mapping[str, Tensor]
"""The boxes to be found in one image, as torchvision's data sets of detection give them: `boxes` [K, 4] as x1, y1, x2,
y2, `labels` [K]; and where there are such, `area` [K] in pixels, and `iscrowd` [K], 1 for a box around a crowd."""


class MetricError(QdropError, ValueError):
    """Average precision that cannot be computed. The message says what is missing."""


def average_precision(detections: Sequence[Detection], targets: Sequence[Target]) -> dict[str, float]:
    """COCO's figures in percent, by name.

    Args:
        detections: What was found in each image.
        targets: What is in each image, in the same order and in the same pixels.

    Raises:
        MetricError: If there is no box to be found.
        MissingPackageError: If pycocotools is not installed.
    """
    with extra("coco", "figures of average precision"):
        from pycocotools.cocoeval import COCOeval
    classes = sorted({int(label) for target in targets for label in target["labels"]})
    if not classes:
        raise MetricError("no image has a box to be found: there is no average precision to report")
    with contextlib.redirect_stdout(io.StringIO()):  # it reports on itself
        truth = _coco(len(targets), classes, _numbered(_truth(targets)))
        found = _coco(len(targets), classes, _numbered(_found(detections)))
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: 100 * float(value) for name, value in zip(FIGURES, evaluation.stats, strict=False)}


def _truth(targets: Iterable[Target]) -> Iterator[dict[str, Any]]:
    """The boxes to be found, in COCO's form."""
    for image, target in enumerate(targets):
        boxes = _corner_and_size(target["boxes"])
        crowds = target.get("iscrowd", torch.zeros(len(boxes)))
        areas = target.get("area", boxes[:, 2] * boxes[:, 3])
        for box, label, area, crowd in zip(boxes, target["labels"], areas, crowds, strict=True):
            yield _box(image, label, box) | {"area": float(area), "iscrowd": int(crowd)}


def _found(detections: Iterable[Detection]) -> Iterator[dict[str, Any]]:
    """The boxes that were found, in COCO's form."""
    for image, here in enumerate(detections):
        boxes = _corner_and_size(here["boxes"])
        for box, label, score in zip(boxes, here["labels"], here["scores"].tolist(), strict=True):
            yield _box(image, label, box) | {"area": float(box[2] * box[3]), "iscrowd": 0, "score": score}


def _box(image: int, label: Tensor, box: Tensor) -> dict[str, Any]:
    return {"image_id": image, "category_id": int(label), "bbox": box.tolist()}


def _corner_and_size(boxes: Tensor) -> Tensor:
    """x1, y1, x2, y2 -> x, y, width, height; [K, 4] float64, where a difference loses nothing."""
    boxes = boxes.detach().double()
    return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)


def _numbered(annotations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """With an id each, from 1: pycocotools takes 0 for none."""
    return [annotation | {"id": number} for number, annotation in enumerate(annotations, 1)]


def _coco(images: int, classes: Sequence[int], annotations: list[dict[str, Any]]) -> Any:
    """A data set of pycocotools."""
    from pycocotools.coco import COCO

    made = COCO()
    made.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": label} for label in classes],
        "annotations": annotations,
    }
    made.createIndex()
    return made
