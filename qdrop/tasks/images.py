"""Images on disk and in memory, for every task. A source gives single images by index, not yet transformed."""

import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from qdrop.errors import QdropError, shorten

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
log = logging.getLogger(__name__)


class DataError(QdropError, ValueError):
    """The data is missing, laid out otherwise, or does not fit the network. The message says what to do."""


class UnreadableImageError(Exception):
    """An image file that cannot be decoded."""


class Source(Protocol):
    """Labelled images by index."""

    @property
    def labels(self) -> Sequence[int]:
        """The class index of every image."""

    def load(self, index: int) -> Image.Image | Tensor:
        """One image: an RGB PIL image, or float32 [C, H, W] in 0..1. Raises UnreadableImageError."""

    def name(self, index: int) -> str:
        """What to call the image in a message."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files, decoded when asked for. With `side`, every image must measure side x side."""

    root: Path
    files: Sequence[str]  # relative to root
    labels: Sequence[int]
    side: int | None = None

    def load(self, index: int) -> Image.Image:
        """Decode one file as RGB.

        Raises:
            UnreadableImageError: it cannot be decoded.
            DataError: it is not `side` pixels wide and high.
        """
        try:
            with Image.open(self.root / self.files[index]) as file:
                image = file.convert("RGB")
        except (
            OSError,
            EOFError,
            SyntaxError,
            ValueError,
            struct.error,
            Image.DecompressionBombError,
        ) as error:
            raise UnreadableImageError(self.name(index)) from error
        if self.side is not None and image.size != (self.side, self.side):
            raise DataError(
                f"{self.root / self.files[index]} measures {image.width}x{image.height}; data.type=cifar10 "
                f"takes {self.side}x{self.side} images only, data.type=imagenet resizes and crops."
            )
        return image

    def name(self, index: int) -> str:
        """The path below the root; what is not UTF-8 in it as escapes."""
        return self.files[index].encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class ImageArray:
    """Images in memory: [N, C, H, W], uint8 in 0..255 or float32 in 0..1."""

    images: Tensor
    labels: Sequence[int]

    def load(self, index: int) -> Tensor:
        """One image as float32 [C, H, W] in 0..1."""
        image = self.images[index]
        return image / 255 if image.dtype == torch.uint8 else image

    def name(self, index: int) -> str:
        """The index as text."""
        return f"image {index}"


def image_names(folder: Path) -> list[str]:
    """Names of the visible image files right in a folder, sorted. No pipe or device: reading one may never end."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image_name(entry.name) and entry.is_file())


def warn_unreadable(unreadable: Sequence[str], tried: int, consequence: str) -> None:
    """One warning for all images that cannot be read, naming the first few."""
    if unreadable:
        what = f"{len(unreadable)} of {tried} images cannot be read"
        log.warning("%s, %s: %s", what, consequence, shorten(unreadable))


def _is_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
