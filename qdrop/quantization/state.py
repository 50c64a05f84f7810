"""What is on: quantizing, dropping. Scopes that always restore.

with quantizing(model):                            # weights and activations on their grids
    with dropping(model, Drop(0.5, stream(generator))):    # half of each activation left in full precision
        out = model(x)
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from qdrop.quantization.drop import Drop
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.spec import Kind


def quantizers(model: nn.Module, *kinds: Kind) -> list[FakeQuantize]:
    """The quantizers inside `model` of the given kinds (none given: all)."""
    wanted = kinds or tuple(Kind)
    return [m for m in model.modules() if isinstance(m, FakeQuantize) and m.spec.kind in wanted]


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
def quantizing(model: nn.Module, weights: bool = True, activations: bool = True) -> Iterator[None]:
    """Inside: weights and activations are on their grids, each as asked, whatever was on before."""
    with (
        holding(quantizers(model, Kind.WEIGHT), "active", weights),
        holding(quantizers(model, Kind.ACTIVATION), "active", activations),
    ):
        yield


@contextmanager
def dropping(model: nn.Module, drop: Drop) -> Iterator[None]:
    """Inside: each quantized activation is kept with probability `drop.keep_prob`, else full precision."""
    with holding(quantizers(model, Kind.ACTIVATION), "drop", drop):
        yield
