"""Networks of torchvision and timm, with their own pretrained weights.

Both libraries are imported when first asked for: a run on one of our networks does not wait for them.
"""

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qdrop.models.errors import ModelError, WeightsError, nearest
from qdrop.models.weights import WeightsInfo, download, hub_folder, resolve_weights

logger = logging.getLogger(__name__)


def build_torchvision(
    name: str, kwargs: Mapping[str, Any], pretrained: bool
) -> tuple[nn.Module, WeightsInfo | None]:
    """A network of torchvision.

    Args:
        name: as in `torchvision.models.list_models()`.
        kwargs: options of its builder.
        pretrained: whether to load the default weights of torchvision.

    Returns:
        The network, and its weights; None where they are random.

    Raises:
        ModelError: unknown name, or options the builder does not take.
        WeightsError: the weights cannot be downloaded.
    """
    import torchvision.models as zoo

    if name not in zoo.list_models():
        raise ModelError(f"torchvision has no model {name!r}; {nearest(name, zoo.list_models())}")
    info = None
    options = dict(kwargs)
    if pretrained:
        options["weights"] = zoo.get_model_weights(name).DEFAULT
        info = _download_torchvision(options["weights"].url)
    elif "weights_backbone" in inspect.signature(zoo.get_model_builder(name)).parameters:
        options.setdefault("weights_backbone", None)  # a detector would download its backbone otherwise
    try:
        return zoo.get_model(name, **options), info
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"torchvision:{name} cannot be built with kwargs {dict(kwargs)}: {error}") from error


def _download_torchvision(url: str) -> WeightsInfo:
    """Put the weights where torchvision looks for them; its file names end in the start of their checksum."""
    target = hub_folder() / url.rsplit("/", 1)[-1]
    marked = re.search(r"-([0-9a-f]{8,})\.", target.name)
    return download(url, target, hash_prefix=marked[1] if marked else None)


def build_timm(
    name: str, kwargs: Mapping[str, Any], pretrained: bool
) -> tuple[nn.Module, WeightsInfo | None]:
    """A network of timm.

    Args:
        name: as in `timm.list_models()`, with or without the tag of its weights.
        kwargs: options of `timm.create_model`.
        pretrained: whether to load the weights of the tag.

    Returns:
        The network, and its weights; None where they are random (or where timm keeps no file of them).

    Raises:
        ModelError: unknown name or tag, or options the network does not take.
        WeightsError: there are no such weights, or they cannot be downloaded.
    """
    import timm

    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
    architecture, _, tag = name.partition(".")
    if tag:
        try:
            timm.models.get_pretrained_cfg(name)
        except RuntimeError:
            tagged = timm.list_models(f"{architecture}.*", pretrained=True)
            raise ModelError(f"timm has no weights {tag!r} of {architecture}; {nearest(name, tagged)}") from None
    try:
        model = timm.create_model(name, pretrained=pretrained, **kwargs)
    except TypeError as error:
        raise ModelError(f"timm:{name} cannot be built with kwargs {dict(kwargs)}: {error}") from error
    except Exception as error:  # timm passes on whatever its downloader raises
        if not pretrained:
            raise ModelError(f"timm:{name} cannot be built with kwargs {dict(kwargs)}: {error}") from error
        raise WeightsError(
            f"timm:{name} has no pretrained weights that can be loaded ({error}); "
            "without network, give model.path a checkpoint file"
        ) from error
    return model, _cached_by_timm(name, model) if pretrained else None


def _cached_by_timm(name: str, model: nn.Module) -> WeightsInfo | None:
    """The file that timm has loaded from the Hugging Face cache."""
    import huggingface_hub

    source: str = getattr(model, "pretrained_cfg", {}).get("hf_hub_id") or ""
    for filename in ("model.safetensors", "pytorch_model.bin"):
        cached = huggingface_hub.try_to_load_from_cache(source, filename) if source else None
        if isinstance(cached, str):
            return WeightsInfo(Path(cached), f"hf-hub:{source}", "")
    logger.warning("the pretrained weights of timm:%s are loaded, but their file is not known", name)
    return None
