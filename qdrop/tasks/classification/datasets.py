"""Where images and labels come from: image folders, torchvision's CIFAR-10, scikit-learn's digits.

Layouts of `data.path`:

    imagenet    train/<class>/*.jpg  val/<class>/*.jpg
    cifar10     the same with 32x32 images, or torchvision's cifar-10-batches-py/
    digits      nothing on disk: comes with scikit-learn

The label of an image is the position of its class in the FULL list of classes: the sorted sub-folder names of
`train`, or the lines of the file `data.classes`. It never comes from `val`, which may hold only some of them.
"""

import os
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from qdrop.config import DataConfig
from qdrop.errors import shorten
from qdrop.extras import extra
from qdrop.files import expanded
from qdrop.tasks.images import DataError, ImageArray, ImageFiles, Source, image_names

CIFAR_SIDE = 32
CIFAR_BATCHES = "cifar-10-batches-py"


def class_names(config: DataConfig) -> list[str]:
    """The full list of class names; the position in it is the label.

    With `data.classes`, the lines of that file in their order, otherwise the sorted sub-folders of `train`.

    Raises:
        DataError: neither is there, the list is empty, or a name is in it twice.
    """
    if config.type == "digits":
        return [str(digit) for digit in range(10)]
    root = _root(config)
    if config.type == "cifar10" and _is_cifar_batches(root):
        return ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    if config.classes is None:
        why = "the class list comes from it; or set data.classes=FILE, one name a line"
        train = _existing(config, root / "train", why)
        if not (names := _subfolders(train)):
            raise _error(config, f"{train} has no class sub-folders", found_in=train)
        return names
    file = expanded(config.classes)
    if not file.is_file():
        raise DataError(f"no file {file} (data.classes): it lists all class folder names, one a line")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} (data.classes) is no text in UTF-8: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{file} (data.classes) lists no class names")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{file} (data.classes) lists more than once: {shorten(twice)}")
    return names


def training_source(config: DataConfig) -> Source:
    """The images to calibrate on. From a folder they carry no label (-1): calibration needs none.

    `data.calib_from` is a sub-folder of `data.path`, or any other folder. Its images lie in it or in its
    sub-folders.

    Raises:
        DataError: nothing is there; the message shows what was looked for and what was found.
    """
    if config.type == "digits":
        return ImageArray(*digits(train=True))
    root = _root(config)
    if config.type == "cifar10" and config.calib_from == "train" and _is_cifar_batches(root):
        return _cifar_batches(root, train=True)
    elsewhere = expanded(config.calib_from)
    folder = root / elsewhere  # elsewhere itself, if absolute
    if not folder.is_dir() and len(elsewhere.parts) > 1 and elsewhere.is_dir():
        folder = elsewhere
    folder = _existing(config, folder, "calibration images come from it: data.calib_from")
    files = image_names(folder)
    for name in _subfolders(folder):
        files += [f"{name}/{file}" for file in image_names(folder / name)]
    if not files:
        raise _error(config, f"{folder} and its sub-folders hold no images", found_in=folder)
    return ImageFiles(folder, files, [-1] * len(files), _side(config))


def validation_source(config: DataConfig) -> Source:
    """The labelled images to measure accuracy on.

    Raises:
        DataError: nothing is there, or `val` holds a class that is not in the list of classes.
    """
    if config.type == "digits":
        return ImageArray(*digits(train=False))
    root = _root(config)
    if config.type == "cifar10" and _is_cifar_batches(root):
        return _cifar_batches(root, train=False)
    folder = _existing(config, root / "val", "validation images come from it")
    index = {name: label for label, name in enumerate(class_names(config))}
    present = _subfolders(folder)
    if unknown := [name for name in present if name not in index]:
        origin = config.classes or root / "train"
        raise DataError(
            f"{folder} holds {len(unknown)} classes that are not among the {len(index)} of {origin}: "
            f"{shorten(unknown)}. Complete the list of classes (data.classes=FILE) or remove these folders."
        )
    files = [(name, file) for name in present for file in image_names(folder / name)]
    if not files:
        raise _error(config, f"{folder} holds no images in class sub-folders", found_in=folder)
    labels = [index[name] for name, _ in files]
    return ImageFiles(folder, [f"{name}/{file}" for name, file in files], labels, _side(config))


def digits(train: bool) -> tuple[Tensor, list[int]]:
    """The handwritten digits of scikit-learn: images [N, 1, 8, 8] float32 in 0..1, and labels.

    Every third image of each class is for validation, the others for training: always the same ones.
    """
    with extra("digits", "the digits of scikit-learn"):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)  # [1797, 1, 8, 8]
    seen = [0] * 10
    chosen = []
    for index, label in enumerate(bunch.target.tolist()):
        if (seen[label] % 3 != 2) == train:
            chosen.append(index)
        seen[label] += 1
    return images[chosen], bunch.target[chosen].tolist()


def _cifar_batches(root: Path, train: bool) -> ImageArray:
    """CIFAR-10 as torchvision stores it, 50,000 or 10,000 images."""
    try:
        data = CIFAR10(str(root), train=train, download=False)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{root / CIFAR_BATCHES} is incomplete or damaged: {error}") from error
    return ImageArray(torch.from_numpy(data.data).permute(0, 3, 1, 2), data.targets)


def _is_cifar_batches(root: Path) -> bool:
    return (root / CIFAR_BATCHES).is_dir()


def _side(config: DataConfig) -> int | None:
    return CIFAR_SIDE if config.type == "cifar10" else None


def _root(config: DataConfig) -> Path:
    """The folder `data.path`, which must exist."""
    if config.path is None:
        raise _error(config, "data.path is not set: give data.path=FOLDER on the command line or in the config")
    return _existing(config, expanded(config.path), "it is data.path")


def _existing(config: DataConfig, folder: Path, why: str) -> Path:
    """The folder itself, or a DataError with what lies in its nearest existing parent."""
    if folder.is_dir():
        return folder
    parent = next((parent for parent in folder.absolute().parents if parent.is_dir()), Path("/"))
    raise _error(config, f"no folder {folder} ({why})", found_in=parent)


def _error(config: DataConfig, problem: str, found_in: Path | None = None) -> DataError:
    """The problem, what the folder holds instead, and the layout expected."""
    root = config.path or "FOLDER"
    layout = f"{root}/train/<class>/*.jpg and {root}/val/<class>/*.jpg"
    if config.type == "cifar10":
        layout += f", or {root}/{CIFAR_BATCHES}/ as torchvision stores it"
    found = ""
    if found_in is not None:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in found_in.iterdir())
        found = f" Found in {found_in}: {shorten(names, most=8) or 'nothing'}."
    return DataError(f"{problem}.{found}\ndata.type={config.type} expects {layout}.")


def _subfolders(folder: Path) -> list[str]:
    """Names of the visible sub-folders, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
