"""Networks by name: the built-in ones, and any of torchvision or timm.

model = build_model("resnet18", path="resnet18_imagenet.pth.tar")
model = build_model("timm:mobilenetv3_small_100", path="auto")
"""

import difflib
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from qdrop.errors import QdropError
from qdrop.models.cifar_resnet import cifar_resnet
from qdrop.models.digits import digits_resnet
from qdrop.models.mnasnet import mnasnet
from qdrop.models.mobilenetv2 import mobilenetv2
from qdrop.models.regnet import regnetx_600m, regnetx_3200m
from qdrop.models.resnet import resnet18, resnet50
from qdrop.models.weights import WeightsError, WeightsInfo, load_weights, resolve_weights

Builder = Callable[..., nn.Module]
log = logging.getLogger(__name__)

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
}
"""Built-in networks; the first six are those of the paper."""


class ModelError(QdropError, ValueError):
    """A network that does not exist or does not take the arguments given."""


def build_model(type: str, kwargs: dict[str, Any] | None = None, path: str | None = None) -> nn.Module:
    """A network in evaluation mode.

    Args:
        type: A built-in name, `torchvision:NAME` or `timm:NAME`.
        kwargs: Arguments of its builder, such as `num_classes`.
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
    """As :func:`build_model`, and which weights were loaded (None: random, or the library's own)."""
    library, _, name = type.rpartition(":")
    builders: dict[str, Callable[[str, bool], Builder]] = {
        "": _own,
        "torchvision": _torchvision,
        "timm": _timm,
    }
    if library not in builders:
        raise ModelError(f"model.type = {type}: expected a built-in name, torchvision:NAME or timm:NAME")
    pretrained = bool(library) and path == "auto"
    builder = builders[library](name, pretrained)
    try:
        model = builder(**(kwargs or {}))
    except OSError as error:
        raise WeightsError(f"model.path = auto: cannot get the weights of {type}: {error}; set a file") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"model.kwargs = {kwargs or {}}: {type} cannot be built with them: {error}") from error
    info = None
    if path is None:
        log.warning("model.path is null: %s has random weights", type)
    elif not pretrained:
        info = resolve_weights(path, type)
        load_weights(model, info)
    return model.eval(), info


def _own(name: str, pretrained: bool) -> Builder:
    if name not in BUILDERS:
        raise _unknown(name, BUILDERS, "; or torchvision:NAME, timm:NAME")
    return BUILDERS[name]


def _torchvision(name: str, pretrained: bool) -> Builder:
    import torchvision  # slow to import, and only needed for its own networks

    if name not in torchvision.models.list_models():
        raise _unknown(f"torchvision:{name}", [f"torchvision:{n}" for n in torchvision.models.list_models()])
    weights = "DEFAULT" if pretrained else None
    return lambda **kwargs: torchvision.models.get_model(name, weights=weights, **kwargs)


def _timm(name: str, pretrained: bool) -> Builder:
    import timm  # slow to import, and only needed for its own networks

    if not timm.is_model(name):
        raise _unknown(f"timm:{name}", [f"timm:{n}" for n in timm.list_models()])
    return lambda **kwargs: timm.create_model(name, pretrained=pretrained, **kwargs)


def _unknown(name: str, known: Iterable[str], otherwise: str = "") -> ModelError:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or names[:9]
    return ModelError(f"model.type = {name}: no such network; did you mean {', '.join(near)}{otherwise}?")
