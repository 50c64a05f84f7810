"""Pictures and boxes in COCO's format: a folder of images, and a JSON file that says what is in them.

data = CocoImages.read(Path("/data/coco/val2017"), Path("/data/coco/annotations/instances_val2017.json"))
picture, target = data.load(0), data.target(0)
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qdrop.errors import first_line, shorten
from qdrop.models.detection.boxes import Detection
from qdrop.tasks.images import DataError, ImageFiles

SECTIONS = ("images", "annotations", "categories")
"""Lists that an annotation file has."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoImages:
    """Pictures with the boxes to be found in them."""

    pictures: ImageFiles
    """The files, in the order of the annotation file."""
    ids: Sequence[int]
    """Of each picture, its id in the annotation file."""
    categories: Sequence[int]
    """Ids of the classes, ascending: the label of a class is its position here."""
    names: Sequence[str]
    """What the classes are called."""
    boxes: Sequence[Sequence[Mapping[str, Any]]]
    """Of each picture, its annotations as the file has them."""
    sizes: Sequence[tuple[int, int] | None]
    """Of each picture, width and height as the file has them; None: it does not say."""

    @classmethod
    def read(cls, folder: Path, annotations: Path) -> "CocoImages":
        """A data set on disk. Boxes without area, or outside of their picture, are left out, with one warning.

        Args:
            folder: Where the pictures lie.
            annotations: The JSON file.

        Raises:
            DataError: If the file is not there or is none of annotations, if it names a picture that is not there, or
                if a box is of an unknown picture or class. Names the file and what is wrong in it.
        """
        data = _read(annotations)
        try:
            images = {image["id"]: image for image in data["images"]}
            classes = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
            files = [str(image["file_name"]) for image in images.values()]
            _check_files(annotations, folder, files)
            boxes = _boxes(annotations, data["annotations"], images, classes)
        except (KeyError, TypeError, AttributeError) as error:
            told = f"an entry without {error}" if isinstance(error, KeyError) else first_line(error)
            raise DataError(f"{annotations}: not in COCO's format: {told}") from error
        ids = sorted(classes)
        return cls(
            ImageFiles(folder, files, [-1] * len(files)),
            list(images),
            ids,
            [classes[number] for number in ids],
            [boxes[number] for number in images],
            [_size(image) for image in images.values()],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int) -> Image.Image:
        """One picture as RGB, whatever the file has: grey, CMYK, a palette.

        Raises:
            UnreadableImageError: If it cannot be decoded.
            DataError: If it has another size than the annotation file says, so that its boxes would not fit.
        """
        picture = self.pictures.load(index)
        if self.sizes[index] not in (None, picture.size):
            told = "x".join(map(str, self.sizes[index] or ()))
            raise DataError(
                f"{self.pictures.root / self.pictures.files[index]} measures {picture.width}x{picture.height}, its"
                f" annotations are for {told}"
            )
        return picture

    def name(self, index: int) -> str:
        """What to call a picture in a message."""
        return self.pictures.name(index)

    def target(self, index: int) -> dict[str, Tensor]:
        """The boxes of one picture: `boxes` [K, 4] as x1, y1, x2, y2, `labels`, `area` and `iscrowd` [K]."""
        label = {number: position for position, number in enumerate(self.categories)}
        here = self.boxes[index]
        boxes = torch.tensor([box["bbox"] for box in here], dtype=torch.float64).reshape(-1, 4)
        return {
            "boxes": torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1),
            "labels": torch.tensor([label[box["category_id"]] for box in here], dtype=torch.int64),
            "area": torch.tensor([_area(box) for box in here], dtype=torch.float64),
            "iscrowd": torch.tensor([int(box.get("iscrowd", 0)) for box in here], dtype=torch.int64),
        }

    def results(self, detections: Sequence[tuple[int, Detection]]) -> list[dict[str, Any]]:
        """What was found, in COCO's format of results: a dict for each box, with its picture's and class's own ids.

        Args:
            detections: Positions of pictures, and what was found in each, in its pixels.
        """
        return list(self._results(detections))

    def _results(self, detections: Sequence[tuple[int, Detection]]) -> Iterator[dict[str, Any]]:
        for index, here in detections:
            for box, label, score in zip(*(here[key].tolist() for key in ("boxes", "labels", "scores")), strict=True):
                x, y, right, below = box
                yield {
                    "image_id": self.ids[index],
                    "category_id": self.categories[label],
                    "bbox": [round(value, 2) for value in (x, y, right - x, below - y)],
                    "score": round(score, 5),
                }


def _read(file: Path) -> dict[str, Any]:
    """An annotation file."""
    if not file.is_file():
        raise DataError(f"no file {file}: it says which boxes are in the validation images, in COCO's format")
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {first_line(error)}") from error
    missing = [key for key in SECTIONS if not (isinstance(data, dict) and isinstance(data.get(key), list))]
    if missing:
        raise DataError(f"{file}: not in COCO's format: no list {', '.join(missing)}; expected {', '.join(SECTIONS)}")
    return data


def _check_files(annotations: Path, folder: Path, files: Sequence[str]) -> None:
    """Refuse an annotation file without images, or with some that are not there: their boxes could not be found."""
    if not files:
        raise DataError(f"{annotations}: lists no images")
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(files)} images of {annotations}: {shorten(missing)};"
            " put them there, or take their entries out of the file"
        )


def _boxes(
    file: Path,
    annotations: Sequence[Mapping[str, Any]],
    images: Mapping[int, Mapping[str, Any]],
    classes: Mapping[int, str],
) -> dict[int, list[Mapping[str, Any]]]:
    """The annotations of each picture, by its id, as far as there is something to be found."""
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    empty = []
    for number, box in enumerate(annotations):
        name = f"annotation {box.get('id', number)}"
        image, category = images.get(box["image_id"]), box["category_id"]
        if image is None:
            raise DataError(f"{file}: {name} is of image {box['image_id']}, which the file does not list")
        if category not in classes:
            raise DataError(f"{file}: {name} is of category {category}, which the file does not list")
        if not _is_box(box["bbox"]):
            raise DataError(f"{file}: {name} has the box {box['bbox']}; expected [x, y, width, height] in pixels")
        if _inside(box["bbox"], _size(image)):
            found[box["image_id"]].append(box)
        else:
            empty.append(name)
    if empty:
        told = "boxes have no area, or lie outside of their picture, and are left out"
        log.warning("%s: %d %s: %s", file, len(empty), told, shorten(empty))
    return found


def _is_box(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    return numbers and all(map(math.isfinite, value))


def _inside(box: Sequence[float], size: tuple[int, int] | None) -> bool:
    """Whether a box has an area, some of it in the picture."""
    x, y, width, height = box
    right, below = size or (math.inf, math.inf)
    return width > 0 and height > 0 and x < right and y < below and x + width > 0 and y + height > 0


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of a picture, where the file says them."""
    return (image["width"], image["height"]) if "width" in image and "height" in image else None


def _area(box: Mapping[str, Any]) -> float:
    """Area of an object in pixels: of its outline where the file says it, else of its box."""
    return float(box.get("area", box["bbox"][2] * box["bbox"][3]))
