"""Scopes that need a network's weights: finding ranges, learning the rounding. What they switch on, they switch off."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import fx

from qdrop.graph.insert import quantized_weights
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers, quantizing


@contextmanager
def calibrating(model: fx.GraphModule) -> Iterator[None]:
    """Inside: weights have their ranges, activations are watched and nothing is quantized.

    Weight ranges come from the weights, on entry. Run calibration images through `model` inside; on a clean
    exit every activation quantizer covers what it saw.

    Raises:
        ValueError: On exit, if no images were run.
    """
    activations = quantizers(model, Kind.ACTIVATION)
    for found in quantized_weights(model):
        found.quantizer.fit(found.weight)
    try:
        for quantizer in activations:
            quantizer.observer = quantizer.new_observer()
        with torch.no_grad(), quantizing(model, weights=False, activations=False):
            yield
        for quantizer in activations:
            if quantizer.observer is not None:
                quantizer.set_range(*quantizer.observer.range())
    finally:
        for quantizer in activations:
            quantizer.observer = None


@contextmanager
def learning_rounding(model: fx.GraphModule) -> Iterator[None]:
    """Inside: weights use their soft, differentiable rounding, where it is learned."""
    with ExitStack() as scopes:
        for found in quantized_weights(model):
            scopes.enter_context(found.quantizer.learning(found.weight))
        yield


@torch.no_grad()
def harden(model: fx.GraphModule) -> float:
    """Make the learned rounding of every weight final; the share of weights, 0 to 1, not rounded to the nearest."""
    flipped = total = 0.0
    for found in quantized_weights(model):
        flipped += found.quantizer.harden(found.weight) * found.weight.numel()
        total += found.weight.numel()
    return flipped / max(1.0, total)
