"""What is on: observing, quantizing, dropping, learning the rounding. Scopes that always restore.

with quantizing(model):                            # weights and activations on their grids
    with dropping(model, Drop(0.5, stream(generator))):    # half of each activation left in full precision
        out = model(x)
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from qdrop.quantization.drop import Drop
from qdrop.quantization.fake_quant import AdaRoundFakeQuantize, FakeQuantize
from qdrop.quantization.quantized_module import QuantizedModule
from qdrop.quantization.spec import Kind


def quantizers(model: nn.Module, *kinds: Kind) -> list[FakeQuantize]:
    """The quantizers inside `model` of the given kinds (none given: all)."""
    wanted = kinds or tuple(Kind)
    return [m for m in model.modules() if isinstance(m, FakeQuantize) and m.spec.kind in wanted]


def quantized_modules(model: nn.Module) -> list[QuantizedModule]:
    """The layers with quantized weights inside `model`."""
    return [m for m in model.modules() if isinstance(m, QuantizedModule)]


def adarounds(model: nn.Module) -> list[AdaRoundFakeQuantize]:
    """The weight quantizers inside `model` that learn their rounding."""
    return [m for m in model.modules() if isinstance(m, AdaRoundFakeQuantize)]


@contextmanager
def holding(things: Iterable[Any], attribute: str, value: Any) -> Iterator[None]:
    """Set `attribute` of every thing to `value`; on the way out, also after an exception, restore it."""
    before = [(thing, getattr(thing, attribute)) for thing in things]
    try:
        for thing, _ in before:
            setattr(thing, attribute, value)
        yield
    finally:
        for thing, was in before:
            setattr(thing, attribute, was)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside: in evaluation mode; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Inside: weights have their ranges, activations are watched and nothing is quantized.

    Weight ranges come from the weights, on entry. Run calibration images through `model` inside; on a clean
    exit every activation quantizer covers what it saw.

    Raises:
        ValueError: On exit, if no images were run.
    """
    activations = quantizers(model, Kind.ACTIVATION)
    for layer in quantized_modules(model):
        layer.calibrate_weight()
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
def quantizing(model: nn.Module, weights: bool = True, activations: bool = True) -> Iterator[None]:
    """Inside: weights and activations are on their grids, each as asked, whatever was on before."""
    with (
        holding(quantizers(model, Kind.WEIGHT), "active", weights),
        holding(quantizers(model, Kind.ACTIVATION), "active", activations),
    ):
        yield


@contextmanager
def dropping(model: nn.Module, drop: Drop) -> Iterator[None]:
    """Inside: each quantized activation is kept with probability `drop.prob`, else full precision."""
    with holding(quantizers(model, Kind.ACTIVATION), "drop", drop):
        yield


@contextmanager
def learning_rounding(model: nn.Module) -> Iterator[None]:
    """Inside: AdaRound weights use their soft, differentiable rounding."""
    with ExitStack() as scopes:
        for layer in quantized_modules(model):
            rounding = layer.weight_quantizer
            if isinstance(rounding, AdaRoundFakeQuantize):
                scopes.enter_context(holding([rounding], "floor", rounding.rounded_down(layer.weight)))
        yield
