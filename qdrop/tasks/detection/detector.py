"""What a detector brings, and how boxes are found with its network as it is now: in full precision, or quantized."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdrop.config import ModelConfig
from qdrop.models import BUILDERS, ModelError, build_model
from qdrop.models.detection.boxes import Detection, Size
from qdrop.quantization.state import evaluating
from qdrop.tasks.detection.data import Batch, Preparation
from qdrop.tasks.task import NotFiniteError

Found = list[tuple[int, Detection]]
"""Positions of pictures in a data set, and what was found in each, in its pixels."""


class Detector(Preparation, Protocol):
    """A network that is quantized, how pictures become its inputs, and how its outputs become boxes."""

    num_classes: int
    """Labels are 0 to num_classes - 1."""

    def features(self) -> nn.Module:
        """What is quantized: prepared images [N, 3, H, W] to any nest of tensors. The detector itself, or a part."""

    def decode(self, outputs: Any, sizes: Sequence[Size], scales: Sequence[Tensor]) -> list[Detection]:
        """Boxes in the pixels of the pictures, from the outputs for prepared images of these sizes and scales."""


def as_detector(model: Any, type: str) -> Detector:
    """A model that is a detector.

    Raises:
        ModelError: If it is none.
    """
    parts = ("features", "prepare", "divisor", "decode", "num_classes")
    if missing := [name for name in parts if not hasattr(model, name)]:
        raise ModelError(f"model.type = {type} is no detector, which data.type = coco is for: no {', '.join(missing)}")
    detector: Detector = model
    return detector


def rebuilt(config: ModelConfig) -> Detector:
    """The detector that settings name. Its weights are loaded where some of them are not in what is quantized.

    Raises:
        ModelError: If there is none of that name.
        WeightsError: If its weights are not to be had.
    """
    if config.type in BUILDERS:
        bare = as_detector(BUILDERS[config.type](**config.kwargs), config.type)
        if bare.features() is bare:
            return bare
    return as_detector(build_model(config.type, config.kwargs, config.path), config.type)


@torch.no_grad()
def find(network: nn.Module, detector: Detector, batches: Iterable[Batch], device: torch.device) -> Found:
    """What is found in pictures.

    Args:
        network: The detector's :meth:`Detector.features`, or what was made of it; on `device`.
        detector: Finds boxes in what the network gives.
        batches: Prepared pictures.
        device: Where to compute.

    Raises:
        NotFiniteError: If an output is infinite or not a number.
    """
    found: Found = []
    if isinstance(detector, nn.Module):
        detector.to(device)  # its heads compute on what the network gives
    with evaluating(network):
        for batch in batches:
            outputs = network(batch.images.to(device))
            if not all(value.isfinite().all() for value in pytree.tree_leaves(outputs)):
                raise NotFiniteError(f"the network's output has infinite or NaN values for picture {batch.indices[0]}")
            here = detector.decode(outputs, batch.sizes, batch.scales)
            found += zip(batch.indices, map(_on_cpu, here), strict=True)
    return found


def _on_cpu(found: Detection) -> Detection:
    return Detection(boxes=found["boxes"].cpu(), scores=found["scores"].cpu(), labels=found["labels"].cpu())
