"""Classification of images, as a run sees it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from qdrop.config import Config
from qdrop.tasks.classification.accuracy import accuracy, check_network
from qdrop.tasks.classification.images import calibration_images, check_preparation, num_classes, validation_loader
from qdrop.tasks.task import Figures

PLACE = ("data.path", "data.classes")
NORMALIZED = ("data.mean", "data.std")
SETTINGS = {
    "imagenet": (
        *PLACE,
        "data.input_size",
        "data.test_resize",
        "data.crop_mode",
        "data.interpolation",
        *NORMALIZED,
    ),
    "cifar10": (*PLACE, *NORMALIZED),
    "digits": (),
}
"""Those that have an effect on the images of a type."""


class Classification:
    """Images `[N, C, H, W]` to logits `[N, classes]`: top-1 in percent on the validation images."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._loader = validation_loader(config.data)
        self.size = len(self._loader.dataset)  # type: ignore[arg-type]

    @staticmethod
    def settings(kind: str) -> tuple[str, ...]:
        """Those that have an effect on the images of a type."""
        return SETTINGS[kind]

    def network(self, model: nn.Module) -> nn.Module:
        """All of it."""
        return model

    def calibration(self, count: int, seed: int) -> Tensor:
        """Training images `[count, C, H, W]`."""
        return calibration_images(self._config.data, count, seed)

    def check(self, model: nn.Module) -> None:
        """Run the network on a validation image; warn where it was trained on images prepared otherwise."""
        check_preparation(self._config)
        images, _ = next(iter(self._loader), (None, None))
        if images is not None:
            check_network(model, images[:1], num_classes(self._config.data))

    def evaluate(self, model: nn.Module, device: torch.device, folder: Path | None = None) -> Figures:
        """Top-1; nothing else is written."""
        return {"top1": accuracy(model, self._loader, device)}

    def illustrate(self, full: nn.Module, outcome: nn.Module, device: torch.device, folder: Path) -> None:
        """A class cannot be seen."""
