"""Calibration: every quantizer gets its range before anything is learned."""

import torch
from torch import fx

from qdrop.errors import QdropError
from qdrop.graph.inputs import Calibration, split, tensors, to_device
from qdrop.graph.scopes import calibrating
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers
from qdrop.runtime.console import track


class CalibrationError(QdropError, ValueError):
    """Images that no ranges can be found on, or a network that gives nothing finite for them."""


def calibrate(model: fx.GraphModule, inputs: Calibration, batch_size: int, device: torch.device) -> None:
    """Set weight ranges from the weights and activation ranges from images, with every quantizer off.

    Args:
        model: A quantized graph on `device`; its quantizers are changed in place.
        inputs: Its arguments by name, tensors `[N, ...]`, N at least 1; or batches of them, each of a size of its own.
        batch_size: Images at a time, where they are no batches. The averaged observers (`Avg...`) average over batches;
            for the others the result does not depend on it.
        device: Where the model is.

    Raises:
        CalibrationError: If there is no image, or a value in the network is not finite; names where.
    """
    if not all(map(len, tensors(inputs))):
        raise CalibrationError("there are no calibration images; at least 1 is needed")
    with calibrating(model):
        for batch in track(split(inputs, batch_size), "calibrating"):
            if not all(value.isfinite().all() for value in tensors(model(**to_device(batch, device)))):
                raise CalibrationError(
                    "the full-precision network gives values that are not finite on calibration images"
                )
    for quantizer in quantizers(model, Kind.ACTIVATION):
        if not (quantizer.scale.isfinite() & quantizer.zero_point.isfinite()).all():
            raise CalibrationError(
                f"'{quantizer.spec.layer}' has values that are not finite on calibration images, such as a mask of"
                " -inf: no range covers them"
            )
