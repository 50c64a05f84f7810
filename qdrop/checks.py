"""Checks of what is handed in from Python: network, images, device, seed. Each is made once, before any work."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from qdrop.config import QuantConfig
from qdrop.errors import QdropError, first_line
from qdrop.graph.inputs import Arguments, Calibration, Example, arguments, between, count_rows, first, joined, tensors
from qdrop.graph.ops import GraphError
from qdrop.sound import flaw, layout_flaw

log = logging.getLogger("qdrop")


class InputError(QdropError, ValueError):
    """Images, a device or a seed that nothing can be done with."""


def original(model: Any) -> nn.Module:
    """The network inside `torch.compile`, `DataParallel` and the like.

    Raises:
        GraphError: If part of it is TorchScript or compiled, whose own code is not there.
        TypeError: If it is no module.
    """
    while isinstance(model, nn.DataParallel | DistributedDataParallel | OptimizedModule):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule | OptimizedModule):
            kind = "compiled" if isinstance(part, OptimizedModule) else "TorchScript"
            where = f"'{name}' in the model" if name else "the model"
            raise GraphError(f"{where} is {kind}; pass the network that it was made from")
    return model


def check_tensors(model: nn.Module) -> None:
    """Refuse parameters and buffers that nothing can be computed with.

    Raises:
        GraphError: Names the first.
    """
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(value):
            raise GraphError(f"parameter '{name}' has no shape yet; run the model on some images first")
        if value.is_floating_point() and value.dtype != torch.float32 and isinstance(value, nn.Parameter):
            raise GraphError(f"parameter '{name}' is {value.dtype}; expected torch.float32, as model.float() makes")
        if told := flaw(value) if isinstance(value, nn.Parameter) else layout_flaw(value):
            raise GraphError(f"'{name}' {told}; expected dense tensors of finite numbers")


def check_seed(seed: Any) -> None:
    """Refuse what is no seed of torch.

    Raises:
        InputError: If it is no whole number from 0 to 2^63 - 1.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) < 2**63:
        told = repr(seed) if isinstance(seed, Integral) and abs(int(seed)) < 10**30 else f"a {type(seed).__name__}"
        raise InputError(f"seed is {told}; expected a whole number from 0 to 2^63 - 1")


def usable_device(device: torch.device | str) -> torch.device:
    """A device that something can be put on.

    Raises:
        InputError: If there is none of that name here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # as a name or a GPU is missing
        raise InputError(f"device = {str(device)[:40]!r}: {first_line(error)}") from error


def check_inputs(given: Calibration, quant: QuantConfig) -> None:
    """Refuse calibration data that no good network can come from.

    Raises:
        InputError: If there are too few rows, or they are of another type or not finite.
    """
    drawn = None if isinstance(given, list) else quant.recon  # of a list of batches one is drawn as it is
    needed, setting = (1, "") if drawn is None else (drawn.batch_size, " (recon.batch_size)")
    if (count := count_rows(given)) < needed:
        raise InputError(f"{count} calibration images; at least {needed}{setting} are needed")
    for images in tensors(given):
        if images.is_floating_point() and images.dtype != torch.float32:
            raise InputError(
                f"calibration images are {images.dtype}; expected torch.float32, normalised as in training"
            )
        if not images.isfinite().all():
            raise InputError("calibration images hold values that are not finite")
    if isinstance(given, list) and quant.network is not None:
        raise InputError("quant.network learns on images of one size; resize them, or set quant.network = null")
    if count < quant.calibrate:
        log.warning("%d calibration images, of the %d that quant.calibrate asks for", count, quant.calibrate)


def collect(model: nn.Module, calibration: Example | Iterable[Example], count: int) -> Calibration:
    """What the model takes, of the first `count` rows of calibration data; it can be learned from.

    Args:
        model: Its `forward` says which members of a batch are inputs, see :func:`qdrop.graph.inputs.arguments`.
        calibration: A tensor `[N, ...]` or a mapping of them, or batches as a data loader gives them.
        count: Rows, at most.

    Returns:
        Them all together; batch by batch where images differ in height or width.

    Raises:
        InputError: If there is something else in their place.
        GraphError: If a batch does not hold what `forward` needs.
    """
    batches = [calibration] if isinstance(calibration, Tensor | Mapping) else calibration
    if not isinstance(batches, Iterable):
        raise InputError(f"calibration is a {type(calibration).__name__}; expected images, or batches of them")
    found: list[Arguments] = []
    rows = 0
    for batch in batches:
        found.append(_checked(model, batch))
        rows += len(tensors(found[-1])[0])
        if rows >= count:
            break
    if not found:
        raise InputError("calibration holds no batch; expected images, or batches of them")
    sizes = False
    for parts in zip(*map(tensors, found), strict=True):
        if len(shapes := {tuple(part.shape[1:]) for part in parts}) > 1:
            if len({shape[:-2] for shape in shapes}) > 1 or any(part.ndim != 4 for part in parts):
                told = ", ".join(map(str, sorted(shapes)))
                raise InputError(f"calibration images are of different shapes [C, H, W]: {told}")
            sizes = True
    return first(found, count) if sizes else between(joined(found), 0, count)


def check_sizes(given: Calibration, graph: fx.GraphModule) -> None:
    """Refuse images of several sizes for a network that takes one size alone.

    Raises:
        InputError: Names the sizes.
    """
    if isinstance(given, list) and not graph.meta["any_size"]:
        told = ", ".join(sorted({str(list(value.shape[1:])) for value in tensors(given)}))
        raise InputError(f"calibration images are of different shapes {told}, and the network takes one size alone")


def _checked(model: nn.Module, batch: Any) -> Arguments:
    """The arguments that a batch holds, tensors with a row for each image."""
    if isinstance(batch, str | bytes) or not isinstance(batch, Tensor | Mapping | Sequence):
        raise InputError(f"a calibration batch is a {type(batch).__name__}; expected images, or (images, labels)")
    given = arguments(model, batch)
    if not tensors(given):
        raise InputError("a calibration batch holds no tensor; expected images, or (images, labels)")
    for value in tensors(given):
        if value.ndim < 2:
            raise InputError(
                f"calibration images are of shape {list(value.shape)}; expected [N, C, H, W], or batches of that shape"
            )
        if told := layout_flaw(value):
            raise InputError(f"calibration images: a batch {told}; expected dense tensors with values")
    return pytree.tree_map(lambda v: _learnable(v) if isinstance(v, Tensor) else v, given)


def _learnable(value: Tensor) -> Tensor:
    """A tensor that something can be learned from: without a history, and not made in inference mode."""
    return value.clone() if value.is_inference() else value.detach()
