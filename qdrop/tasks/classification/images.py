"""Images to calibrate on and to validate on, as a network takes them. Where they come from: datasets.py.

images = calibration_images(config.data, 1024, seed=0)      # [1024, 3, 224, 224]
loader = validation_loader(config.data)                     # batches of (images, labels)
"""

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_tensor

from qdrop.config import Config, DataConfig, config_to_dict
from qdrop.models.preparation import preparation
from qdrop.runtime.console import track
from qdrop.runtime.openmp import available_cores
from qdrop.tasks.classification.datasets import CIFAR_SIDE, class_names, training_source, validation_source
from qdrop.tasks.images import DataError, Source, UnreadableImageError, warn_unreadable

DIGITS_MEAN, DIGITS_STD = 0.3, 0.4
log = logging.getLogger(__name__)
Transform = Callable[[Any], Tensor]


def calibration_images(config: DataConfig, count: int, seed: int) -> Tensor:
    """Training images chosen at random without replacement, normalised and, with `data.augment`, augmented.

    The same seed gives the same images and the same crops, whatever the number of workers; the global random
    state is neither used nor changed. Images that cannot be read are replaced by others, with one warning.

    Args:
        config: the `data` section.
        count: how many images.
        seed: chooses images, crops and flips.

    Returns:
        float32 [count, C, H, W].

    Raises:
        DataError: the data is not there, or too few images can be read.
    """
    source = training_source(config)
    available = len(source.labels)
    if not 1 <= count <= available:
        raise DataError(f"calibration needs {count} images, found {available} for data.calib_from={config.calib_from}")
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed)).tolist()
    transform = _training_transform(config) if config.augment else _validation_transform(config)
    result: Tensor | None = None
    filled, tried, unreadable = 0, 0, list[str]()
    while filled < count and tried < available:  # a second round only replaces what the first could not read
        chosen = order[tried : tried + count - filled]
        tried += len(chosen)
        loader = ImageLoader(Samples(source, chosen, transform, seed), config, warn=False)
        for images, _ in track(loader, "loading calibration images"):
            if result is None:
                result = images.new_empty(count, *images.shape[1:])  # [count, C, H, W]
            result[filled : filled + len(images)] = images
            filled += len(images)
        unreadable += loader.unreadable
    warn_unreadable(unreadable, tried, "replaced by other calibration images")
    if result is None or filled < count:
        raise DataError(f"calibration needs {count} images, found {filled} that can be read among {available}")
    return result


def validation_loader(config: DataConfig) -> DataLoader:
    """Batches of (images [N, C, H, W] float32, labels [N] int64), always in the same order.

    With `data.val_limit`, an evenly spread subset: image floor(i * total / limit) for i = 0 .. limit - 1.
    Images are sorted by class, so the first `limit` of them would be of the first few classes only.

    Images that cannot be read are left out, with one warning after the last batch.

    Raises:
        DataError: the data is not there, or `val` holds a class that is not in the list of classes.
    """
    source = validation_source(config)
    total = len(source.labels)
    limit = total if config.val_limit is None else min(config.val_limit, total)
    chosen = [i * total // limit for i in range(limit)]
    return ImageLoader(Samples(source, chosen, _validation_transform(config)), config)


def num_classes(config: DataConfig) -> int:
    """How many classes the full list has, whichever of them `val` holds."""
    return len(class_names(config))


def check_preparation(config: Config) -> None:
    """Warn where a network of a library was trained on images prepared in another way than they are here."""
    if config.data.type != "imagenet":
        return
    here = config_to_dict(config)["data"]
    for name, value in preparation(config.model.type).items():
        if here[name] != value:
            log.warning("%s was trained with data.%s=%s, here it is %s", config.model.type, name, value, here[name])


Sample = tuple[Tensor, int] | str | DataError
"""An image and its label; of an unreadable image its name. An error is handed on, to be raised here and not
in a worker process, whose traceback would come with it."""


class Samples(Dataset[Sample]):
    """Chosen images of a source, transformed; the randomness of each depends on (seed, index) alone."""

    def __init__(self, source: Source, chosen: Sequence[int], transform: Transform, seed: int = 0) -> None:
        self.source, self.chosen, self.transform, self.seed = source, chosen, transform, seed

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> Sample:
        index = self.chosen[position]
        try:
            image = self.source.load(index)
        except UnreadableImageError:
            return self.source.name(index)
        except DataError as error:
            return error
        with torch.random.fork_rng(devices=[]):  # gives the global random state back
            torch.default_generator.manual_seed(zlib.crc32(f"{self.seed} {index}".encode()))
            return self.transform(image), self.source.labels[index]


class ImageLoader(DataLoader[Sample]):
    """Batches of (images, labels). What cannot be read is left out, and named in `unreadable`."""

    unreadable: list[str]

    def __init__(self, samples: Samples, config: DataConfig, warn: bool = True) -> None:
        super().__init__(
            samples,
            batch_size=config.batch_size,
            num_workers=min(config.num_workers, available_cores()),
            pin_memory=config.pin_memory and torch.cuda.is_available(),
            collate_fn=_collate,
            generator=torch.Generator(),  # else every pass draws from the global one
        )
        self.total, self.warn = len(samples), warn

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        self.unreadable = []
        for images, labels, unreadable, refused in super().__iter__():
            if refused:
                raise refused[0]
            self.unreadable += unreadable
            if len(labels):
                yield images, labels
        if self.warn:
            warn_unreadable(self.unreadable, self.total, "left out of the accuracy")


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor, list[str], list[DataError]]:
    """Images [N, C, H, W], labels [N], the names of the unreadable ones, and errors."""
    read = [sample for sample in samples if isinstance(sample, tuple)]
    unreadable = [sample for sample in samples if isinstance(sample, str)]
    refused = [sample for sample in samples if isinstance(sample, DataError)]
    images = torch.stack([image for image, _ in read]) if read else torch.empty(0)
    return images, torch.tensor([label for _, label in read]), unreadable, refused


def _training_transform(config: DataConfig) -> Transform:
    """The augmentation usual for each kind of data, then normalisation."""
    resized_crop = transforms.RandomResizedCrop(config.input_size, interpolation=_interpolation(config))
    steps = {
        "imagenet": [resized_crop, transforms.RandomHorizontalFlip()],
        "cifar10": [transforms.RandomCrop(CIFAR_SIDE, padding=4), transforms.RandomHorizontalFlip()],
        "digits": [transforms.RandomCrop(8, padding=1)],  # shifts by one pixel
    }[config.type]
    return transforms.Compose([*steps, _to_float, _normalize(config)])


def _validation_transform(config: DataConfig) -> Transform:
    """Resize and central crop for ImageNet, then normalisation."""
    side = config.test_resize
    resize = transforms.Resize((side, side) if config.crop_mode == "squash" else side, _interpolation(config))
    steps = [resize, transforms.CenterCrop(config.input_size)] if config.type == "imagenet" else []
    return transforms.Compose([*steps, _to_float, _normalize(config)])


def _interpolation(config: DataConfig) -> transforms.InterpolationMode:
    return transforms.InterpolationMode(config.interpolation)


def _normalize(config: DataConfig) -> Transform:
    """By `data.mean` and `data.std`; digits have one channel and constants of their own."""
    if config.type == "digits":
        return transforms.Normalize([DIGITS_MEAN], [DIGITS_STD])
    return transforms.Normalize(config.mean, config.std)


def _to_float(image: Image.Image | Tensor) -> Tensor:
    """float32 [C, H, W] in 0..1."""
    return image if isinstance(image, Tensor) else to_tensor(image)
