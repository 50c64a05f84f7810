"""Checks of what is handed in from Python: network, images, device, seed. Each is made once, before any work."""

import logging
from collections.abc import Iterable
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from qdrop.config import QuantConfig
from qdrop.errors import QdropError, first_line
from qdrop.quantization.graph import GraphError
from qdrop.sound import flaw, layout_flaw

log = logging.getLogger("qdrop")

Batch = Tensor | tuple[Tensor, ...] | list[Tensor]


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


def check_images(images: Tensor, quant: QuantConfig) -> None:
    """Refuse calibration images that no good network can come from.

    Raises:
        InputError: If they are too few, of another type or not finite.
    """
    needed, setting = (1, "") if quant.recon is None else (quant.recon.batch_size, " (recon.batch_size)")
    if len(images) < needed:
        raise InputError(f"{len(images)} calibration images; at least {needed}{setting} are needed")
    if images.dtype != torch.float32:
        raise InputError(f"calibration images are {images.dtype}; expected torch.float32, normalised as in training")
    if not images.isfinite().all():
        raise InputError("calibration images hold values that are not finite")
    if len(images) < quant.calibrate:
        log.warning("%d calibration images, of the %d that quant.calibrate asks for", len(images), quant.calibrate)


def collect(calibration: Tensor | Iterable[Batch], count: int) -> Tensor:
    """The first `count` images `[N, C, H, W]`; they can be learned from, wherever they were made.

    Raises:
        InputError: If there is something else in their place.
    """
    if isinstance(calibration, Tensor):
        images = _images(calibration)[:count]
        return images.clone() if images.is_inference() else images
    if not isinstance(calibration, Iterable):
        raise InputError(f"calibration is a {type(calibration).__name__}; expected images, or batches of them")
    batches: list[Tensor] = []
    for batch in calibration:
        batches.append(_images(batch))
        if sum(len(b) for b in batches) >= count:
            break
    if len(shapes := {tuple(b.shape[1:]) for b in batches}) > 1:
        raise InputError(f"calibration images are of different shapes [C, H, W]: {', '.join(map(str, sorted(shapes)))}")
    return torch.cat(batches)[:count] if batches else torch.empty(0)


def _images(batch: Batch) -> Tensor:
    """The images of a batch, `[N, C, H, W]`."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise InputError(f"a calibration batch is a {type(batch).__name__}; expected images, or (images, labels)")
    if images.ndim != 4:
        raise InputError(
            f"calibration images are of shape {list(images.shape)}; expected [N, C, H, W], or batches of that shape"
        )
    if told := layout_flaw(images):
        raise InputError(f"calibration images: a batch {told}; expected dense tensors with values")
    return images.detach()
