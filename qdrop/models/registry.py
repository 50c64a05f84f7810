"""Networks by name: the built-in ones, and any of torchvision or timm.

model = build_model("resnet18", path="resnet18_imagenet.pth.tar")
model = build_model("timm:mobilenetv3_small_100", path="auto")
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdrop.errors import QdropError
from qdrop.models.cifar_resnet import cifar_resnet
from qdrop.models.digits import digits_resnet
from qdrop.models.library import ModelError, is_detector, timm_network, torchvision_network, unknown
from qdrop.models.mnasnet import mnasnet
from qdrop.models.mobilenetv2 import mobilenetv2
from qdrop.models.regnet import regnetx_600m, regnetx_3200m
from qdrop.models.resnet import resnet18, resnet50
from qdrop.models.state_dict import load_weights, read_state_dict
from qdrop.models.weights import WeightsError, WeightsInfo, resolve_weights

Builder = Callable[..., nn.Module]
log = logging.getLogger(__name__)


def _detector(module: str, name: str, *args: Any) -> Builder:
    """A builder of a module of this package, which is imported when it is called."""

    def build(**kwargs: Any) -> nn.Module:
        built: nn.Module = getattr(import_module(f"qdrop.models.{module}"), name)(*args, **kwargs)
        return built

    return build


BUILDERS: dict[str, Builder] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenetv2": mobilenetv2,
    "regnetx_600m": regnetx_600m,
    "regnetx_3200m": regnetx_3200m,
    "mnasnet": mnasnet,
    "resnet20": partial(cifar_resnet, 20),
    "resnet32": partial(cifar_resnet, 32),
    "resnet44": partial(cifar_resnet, 44),
    "resnet56": partial(cifar_resnet, 56),
    "resnet110": partial(cifar_resnet, 110),
    "digits_resnet": digits_resnet,
    "yolo_fastestv2": _detector("yolo_fastestv2", "YoloFastestV2"),
    "faster_rcnn_r50_fpn": _detector("detection", "faster_rcnn", 50),
    "faster_rcnn_r101_fpn": _detector("detection", "faster_rcnn", 101),
    "retinanet_r50_fpn": _detector("detection", "retinanet", 50),
    "retinanet_r101_fpn": _detector("detection", "retinanet", 101),
}
"""Built-in networks; the first six and the last four are those of the paper."""


def build_model(type: str, kwargs: dict[str, Any] | None = None, path: str | None = None) -> nn.Module:
    """A network in evaluation mode.

    Args:
        type: A built-in name, `torchvision:NAME` or `timm:NAME`.
        kwargs: Arguments of its builder, such as `num_classes`; of a detector of torchvision's also `heads`, see
            :class:`qdrop.models.detection.library.TorchvisionDetector`, which it is put into.
        path: Its weights: a file, a URL, `auto` (published ones), `embedded` (the digits network's); None:
            random.

    Raises:
        ModelError: If there is no such network or it refuses `kwargs`.
        WeightsError: If the weights are not to be had or do not fit.
    """
    return build_model_with_info(type, kwargs, path)[0]


def build_model_with_info(
    type: str, kwargs: dict[str, Any] | None = None, path: str | None = None
) -> tuple[nn.Module, WeightsInfo | None]:
    """As :func:`build_model`, and which weights were loaded (None: random)."""
    library, _, name = type.rpartition(":")
    libraries = {"": _own_network, "torchvision": torchvision_network, "timm": timm_network}
    if library not in libraries:
        raise ModelError(f"model.type = {type}: expected a built-in name, torchvision:NAME or timm:NAME")
    of_library = bool(library) and path == "auto"
    given = dict(kwargs or {})
    detects = library == "torchvision" and is_detector(name)
    heads = bool(given.pop("heads", False)) if detects else False
    try:
        model, info = libraries[library](name, given, of_library)
    except QdropError:
        raise
    except OSError as error:  # networks of torchvision for detection download a backbone, whatever is asked
        raise WeightsError(f"{type} cannot get its weights ({error}); set model.path to a file") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"model.kwargs = {kwargs or {}}: {type} cannot be built with them: {error}") from error
    if path is None:
        log.warning("model.path is null: %s has random weights", type)
    elif not of_library:
        info = resolve_weights(path, type)
        try:
            load_weights(model, info)
        except WeightsError as error:
            other = network_of(read_state_dict(Path(info.path)))
            if other in (None, type):
                raise
            raise WeightsError(
                f"{info.path} is a checkpoint of {other}, not of {type}: correct model.path, or set"
                f" model.type = {other}"
            ) from error
    if detects:
        from qdrop.models.detection.library import TorchvisionDetector

        model = TorchvisionDetector(model, heads)
    return model.eval(), info


def network_of(state: Mapping[str, Tensor]) -> str | None:
    """Name of the built-in network that a state dict has the keys of; None: of none."""
    with torch.device("meta"):  # without memory
        return next((name for name, build in BUILDERS.items() if set(build().state_dict()) == set(state)), None)


def _own_network(name: str, kwargs: Mapping[str, Any], own_weights: bool) -> tuple[nn.Module, None]:
    """A built-in network, with random weights: all others come from a file."""
    if name not in BUILDERS:
        raise unknown(name, BUILDERS, "; or torchvision:NAME, timm:NAME")
    return BUILDERS[name](**kwargs), None
