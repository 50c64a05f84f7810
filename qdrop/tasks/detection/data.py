"""Where the pictures of a data set in COCO's format lie, and how they come to a detector.

data.path/train2017/*.jpg  data.path/val2017/*.jpg  data.path/annotations/instances_val2017.json
data.path/train/*.jpg      data.path/val/*.jpg      data.path/val.json
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from qdrop.config import DataConfig
from qdrop.files import expanded
from qdrop.models.detection.boxes import Size
from qdrop.models.detection.preparation import together
from qdrop.runtime.openmp import available_cores
from qdrop.tasks.detection.coco import CocoImages
from qdrop.tasks.images import DataError, ImageFiles, UnreadableImageError, image_names, warn_unreadable
from qdrop.tasks.task import Images

LAYOUTS = (("train2017", "val2017", "annotations/instances_val2017.json"), ("train", "val", "val.json"))
"""Folder to calibrate on, folder to evaluate on, its annotations; below `data.path`. The first is COCO's own."""


class Preparation(Protocol):
    """How pictures become a batch."""

    @property
    def divisor(self) -> int:
        """Prepared images of a batch are padded with zeros to the right and below, to multiples of it."""

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """A picture, RGB uint8 [3, H, W], as the network takes it [3, h, w]; its new width and height over the old."""


class Pictures(Protocol):
    """Pictures by index, RGB."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """One picture. Raises UnreadableImageError."""

    def name(self, index: int) -> str:
        """What to call it in a message."""


@dataclass(frozen=True)
class Batch:
    """Prepared pictures, and what is needed to find boxes in the pixels of the pictures themselves."""

    indices: list[int]
    """Positions of the pictures in the data set."""
    images: Tensor
    """[N, 3, H, W], padded with zeros to the right and below."""
    sizes: list[Size]
    """Height and width of each without padding."""
    scales: list[Tensor]
    """Width and height of each over those of the picture [2]."""


def validation_pictures(config: DataConfig) -> CocoImages:
    """The pictures to evaluate on, and what is in them.

    Raises:
        DataError: If they are not there, or their annotations are not as they should be.
    """
    root, (_, folder, annotations) = _layout(config)
    return CocoImages.read(root / folder, root / annotations)


def training_pictures(config: DataConfig) -> ImageFiles:
    """The pictures to calibrate on; without boxes, which nothing needs.

    Raises:
        DataError: If there are none.
    """
    root, (train, *_) = _layout(config)
    folder = root / (train if config.calib_from == "train" else expanded(config.calib_from))
    files = image_names(folder) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder} holds no images: those to calibrate on (data.calib_from)")
    return ImageFiles(folder, files, [-1] * len(files))


def _layout(config: DataConfig) -> tuple[Path, tuple[str, str, str]]:
    """The folder of the data set, and which of the layouts it has."""
    expected = " or ".join(f"{folder} with {annotations}" for _, folder, annotations in LAYOUTS)
    if config.path is None:
        raise DataError(f"data.path is not set: the folder that holds {expected}")
    root = expanded(config.path)
    found = next((layout for layout in LAYOUTS if (root / layout[1]).is_dir()), None)
    if found is None:
        raise DataError(f"{root} (data.path) is no data set in COCO's format: it holds no {expected}")
    return root, found


def calibration_images(
    pictures: ImageFiles, preparation: Preparation, mirror: bool, count: int, batch: int, seed: int
) -> Images:
    """Pictures chosen at random without replacement, prepared.

    Args:
        pictures: Those to choose from.
        preparation: How the detector wants them.
        mirror: Whether half of them are mirrored.
        count: How many.
        batch: How many in a batch where sizes differ.
        seed: Of the choice.

    Returns:
        float32 [N, 3, H, W]; where sizes differ, batches of upright pictures, and of others.

    Raises:
        DataError: If so many cannot be read.
    """
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures.files), generator=random).tolist()
    mirrored = (torch.rand(len(order), generator=random) < 0.5).tolist() if mirror else [False] * len(order)
    images: list[Tensor] = []
    for number, index in enumerate(order):
        if len(images) == count:
            break
        try:
            pixels = pil_to_tensor(pictures.load(index))
        except UnreadableImageError:
            continue
        images.append(preparation.prepare(pixels.flip(-1) if mirrored[number] else pixels)[0])
    if len(images) < count:
        raise DataError(
            f"calibration needs {count} images, found {len(images)} that can be read among {len(order)} in"
            f" {pictures.root}"
        )
    if len({image.shape for image in images}) == 1:
        return torch.stack(images)
    upright, others = (
        [image for image in images if (image.shape[1] > image.shape[2]) is tall] for tall in (True, False)
    )
    parts = [alike[i : i + batch] for alike in (upright, others) for i in range(0, len(alike), batch)]
    return [together(part, preparation.divisor) for part in parts]


class Prepared(Dataset["tuple[int, Tensor, Tensor] | str | DataError"]):
    """Chosen pictures as a detector takes them; of one that cannot be read its name; an error is raised later."""

    def __init__(self, pictures: Pictures, chosen: Sequence[int], preparation: Preparation) -> None:
        self._pictures, self._chosen, self._prepare = pictures, chosen, preparation.prepare

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, position: int) -> tuple[int, Tensor, Tensor] | str | DataError:
        index = self._chosen[position]
        try:
            return index, *self._prepare(pil_to_tensor(self._pictures.load(index)))
        except UnreadableImageError:
            return self._pictures.name(index)
        except DataError as error:
            return error


def batches(pictures: Pictures, chosen: Sequence[int], preparation: Preparation, config: DataConfig) -> Iterator[Batch]:
    """Chosen pictures of a data set in batches, in that order.

    What cannot be read is left out, with one warning after the last batch.

    Raises:
        DataError: If a picture has another size than its annotations say.
    """
    loader = DataLoader(
        Prepared(pictures, chosen, preparation),
        batch_size=config.batch_size,
        num_workers=min(config.num_workers, available_cores()),
        collate_fn=list,
        generator=torch.Generator(),  # else every pass draws from the global one
    )
    unreadable: list[str] = []
    for samples in loader:
        for sample in samples:
            if isinstance(sample, DataError):
                raise sample
        unreadable += [sample for sample in samples if isinstance(sample, str)]
        read = [sample for sample in samples if isinstance(sample, tuple)]
        if read:
            indices, images, scales = (list(values) for values in zip(*read, strict=True))
            sizes = [(image.shape[1], image.shape[2]) for image in images]
            yield Batch(indices, together(images, preparation.divisor), sizes, scales)
    warn_unreadable(unreadable, len(chosen), "left out of the average precision")


def chosen_pictures(total: int, config: DataConfig) -> list[int]:
    """Which of so many pictures are evaluated: with `data.val_limit` an evenly spread part of them."""
    limit = total if config.val_limit is None else min(config.val_limit, total)
    return [i * total // limit for i in range(limit)]
