"""Detection of objects, as a run sees it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from qdrop.config import Config
from qdrop.errors import first_line
from qdrop.files import write_file
from qdrop.runtime.console import track
from qdrop.tasks.detection.average_precision import average_precision
from qdrop.tasks.detection.data import (
    Batch,
    batches,
    calibration_images,
    chosen_pictures,
    training_pictures,
    validation_pictures,
)
from qdrop.tasks.detection.detector import Detector, as_detector, find, rebuilt
from qdrop.tasks.detection.drawing import side_by_side
from qdrop.tasks.images import DataError
from qdrop.tasks.task import Figures, Images

DETECTIONS = "detections.json"
"""What the outcome found, in COCO's format of results."""
PICTURES = "pictures"
"""The folder of pictures with boxes, by full precision to the left and by the outcome to the right."""
DRAWN = 10
"""How many pictures that are."""


class DetectionTask:
    """Pictures with boxes in COCO's format: average precision in percent on the validation pictures."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pictures = validation_pictures(config.data)
        self._chosen = chosen_pictures(len(self._pictures), config.data)
        self._detector: Detector | None = None
        self.size = len(self._chosen)

    @staticmethod
    def settings(kind: str) -> tuple[str, ...]:
        """Where pictures lie, and the file of the parts that stay in full precision: the detector prepares them."""
        return "data.path", "model.path"

    @property
    def detector(self) -> Detector:
        """The one that :meth:`network` was given; without it, the one that the settings name."""
        if self._detector is None:
            self._detector = rebuilt(self._config.model)
        return self._detector

    def network(self, model: nn.Module) -> nn.Module:
        """The part of a detector that is quantized; the rest is kept, to find boxes with.

        Raises:
            ModelError: If the model is no detector.
        """
        self._detector = as_detector(model, self._config.model.type)
        return self._detector.features()

    def calibration(self, count: int, seed: int) -> Images:
        """Training pictures, prepared; those of several sizes in batches of `quant.calibrate_batch`."""
        data, batch = self._config.data, self._config.quant.calibrate_batch
        return calibration_images(training_pictures(data), self.detector, data.augment, count, batch, seed)

    def check(self, model: nn.Module) -> None:
        """See that there are as many classes as the network has, and run it on a picture."""
        classes, expected = len(self._pictures.categories), self.detector.num_classes
        if classes != expected:
            raise DataError(
                f"the annotations have {classes} categories, the network {expected} classes: labels would not match."
                " Take a network with as many, or annotations that list all of its classes"
            )
        for batch in self._batches(self._chosen[:1]):
            try:
                find(model, self.detector, [batch], torch.device("cpu"))
            except Exception as error:  # a foreign network may raise anything
                shape = "x".join(map(str, batch.images.shape[1:]))
                told = f"the network cannot run on the pictures of the data, prepared {shape}"
                raise DataError(f"{told}: {first_line(error)}") from error

    def evaluate(self, model: nn.Module, device: torch.device, folder: Path | None = None) -> Figures:
        """AP, AP50, AP75. With a folder, what was found is written there, in COCO's format of results."""
        found = find(model, self.detector, track(self._batches(self._chosen), "evaluating"), device)
        if folder is not None:
            write_file(folder / DETECTIONS, json.dumps(self._pictures.results(found)) + "\n")
        return average_precision([here for _, here in found], [self._pictures.target(index) for index, _ in found])

    def illustrate(self, full: nn.Module, outcome: nn.Module, device: torch.device, folder: Path) -> None:
        """Draw the boxes of the full-precision network and of the outcome on a few pictures, side by side."""
        chosen = self._chosen[:: max(1, len(self._chosen) // DRAWN)][:DRAWN]
        left, right = (find(model, self.detector, self._batches(chosen), device) for model in (full, outcome))
        (folder / PICTURES).mkdir(exist_ok=True)
        for (index, one), (_, other) in zip(left, right, strict=True):
            drawn = side_by_side(self._pictures.load(index), one, other, self._pictures.names)
            drawn.save(folder / PICTURES / f"{self._pictures.ids[index]}.jpg")

    def _batches(self, chosen: Sequence[int]) -> Iterator[Batch]:
        return batches(self._pictures, chosen, self.detector, self._config.data)
