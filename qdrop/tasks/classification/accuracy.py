"""Top-1 accuracy of a network, and whether it fits the data at all.

check_network(model, images, num_classes(config.data))
print(accuracy(model, loader, device="cpu"))  # percent
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qdrop.errors import first_line
from qdrop.quantization.state import evaluating
from qdrop.runtime.console import track
from qdrop.tasks.images import DataError
from qdrop.tasks.task import NotFiniteError


@torch.no_grad()
def check_network(model: nn.Module, images: Tensor, classes: int) -> None:
    """See that a network takes the images of the data and has an output for each class.

    Args:
        model: Any network.
        images: One or two images `[N, C, H, W]`, on its device.
        classes: How many classes the data has.

    Raises:
        DataError: If it cannot run on them, or labels would not match.
    """
    try:
        logits = model(images)
    except Exception as error:  # a foreign network may raise anything
        shape = "x".join(map(str, images.shape[1:]))
        raise DataError(f"the network cannot run on the images of the data, {shape}: {first_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise DataError(f"the network's output is no tensor of logits [N, classes], but {_kind(logits)}")
    if classes != logits.shape[1]:
        raise DataError(
            f"the data has {classes} classes, the network {logits.shape[1]} outputs: labels would not match. Take a "
            f"network with {classes} outputs, or name all {logits.shape[1]} classes in the order of its outputs "
            "(data.classes=FILE, one class folder a line)."
        )


def _kind(value: object) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def accuracy(model: nn.Module, loader: DataLoader, device: torch.device | str) -> float:
    """Top-1 accuracy in percent. The model runs in eval mode without gradients; its mode is restored.

    Args:
        model: images [N, C, H, W] to logits [N, classes]; already on `device`.
        loader: batches of (images, labels).
        device: where to put the images.

    Raises:
        NotFiniteError: a logit is infinite or not a number.
        DataError: the loader gave no image.
    """
    correct, seen = 0, 0
    with evaluating(model), torch.no_grad():
        for done, (images, labels) in enumerate(track(loader, "evaluating"), start=1):
            logits = model(images.to(device, non_blocking=True))  # [N, classes]
            if not logits.isfinite().all():
                raise NotFiniteError(
                    f"the network's output has infinite or NaN values in batch {done} of {len(loader)}"
                )
            correct += int((logits.argmax(1) == labels.to(device)).sum())
            seen += len(labels)
    if seen == 0:
        raise DataError("no validation image could be read: there is no accuracy to report")
    return 100 * correct / seen
