"""Networks of torchvision and of timm, and their own weights.

model, weights = torchvision_network("resnet18", {}, own_weights=True)
model, weights = timm_network("mobilenetv3_small_100", {"num_classes": 10}, own_weights=False)
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qdrop.errors import QdropError
from qdrop.extras import extra
from qdrop.models.state_dict import read_state_dict
from qdrop.models.weights import WeightsError, WeightsInfo, describe, download, hub_folder

HUGGING_FACE = "https://huggingface.co"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm looks for in a repository of the Hugging Face hub, in this order."""


class ModelError(QdropError, ValueError):
    """A network that does not exist or does not take the arguments given."""


def torchvision_network(
    name: str, kwargs: Mapping[str, Any], own_weights: bool
) -> tuple[nn.Module, WeightsInfo | None]:
    """A network of torchvision, and the file of its weights (None: random ones).

    Args:
        name: As in `torchvision.models.list_models()`.
        kwargs: Arguments of its builder.
        own_weights: Whether to load the library's own weights, its `DEFAULT`.

    Raises:
        ModelError: There is no such network.
        WeightsError: It has no weights, or they cannot be downloaded or read.
    """
    from torchvision import models  # slow to import, and only needed for its own networks

    if name not in models.list_models():
        raise unknown(f"torchvision:{name}", [f"torchvision:{known}" for known in models.list_models()])
    if not own_weights:
        backbone = {"weights_backbone": None} if is_detector(name) else {}  # else it is downloaded, whatever is asked
        return models.get_model(name, weights=None, **backbone, **kwargs), None
    weights = getattr(models.get_model_weights(name), "DEFAULT", None)
    if weights is None:
        raise _without_weights(f"torchvision:{name}")
    file = hub_folder() / Path(weights.url).name
    info = download(weights.url, file, sha256=file.stem.rpartition("-")[2])  # as in resnet18-f37072fd.pth
    read_state_dict(Path(info.path))  # refuses what holds more than tensors, as torchvision itself does not
    return models.get_model(name, weights=weights, **kwargs), info


def is_detector(name: str) -> bool:
    """Whether a network of torchvision finds boxes."""
    from torchvision import models

    return name in models.list_models(module=models.detection)


def timm_network(name: str, kwargs: Mapping[str, Any], own_weights: bool) -> tuple[nn.Module, WeightsInfo | None]:
    """A network of timm, and the file of its weights (None: random ones, or a file that cannot be told).

    Args:
        name: As in `timm.list_models()`, with or without a tag.
        kwargs: Arguments of its builder.
        own_weights: Whether to load the library's own weights.

    Raises:
        ModelError: There is no such network.
        WeightsError: It has no weights, or they cannot be downloaded.
    """
    with extra("timm", "networks of timm"):
        import timm

    if not timm.is_model(name):
        raise unknown(f"timm:{name}", [f"timm:{known}" for known in timm.list_models()])
    if not own_weights:
        return timm.create_model(name, pretrained=False, **kwargs), None
    source = timm.get_pretrained_cfg(name)
    if source is None or not source.has_weights:
        raise _without_weights(f"timm:{name}")
    hub_id, url = source.hf_hub_id, str(source.url)
    try:
        return timm.create_model(name, pretrained=True, **kwargs), _cached(hub_id, url)
    except OSError as error:
        raise WeightsError(
            f"the weights of timm:{name} could not be downloaded from {_address(hub_id, url)} "
            f"({error}); without network, fetch {HUB_FILES[0]} there on another machine and give it as model.path"
        ) from error


def unknown(name: str, known: Iterable[str], otherwise: str = "") -> ModelError:
    """The error for a network that does not exist, with the nearest names that do."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or names[:9]
    return ModelError(f"model.type = {name}: no such network; did you mean {', '.join(near)}{otherwise}?")


def _without_weights(type: str) -> WeightsError:
    return WeightsError(f"model.path = auto: there are no weights for {type}; give a file, or null for random ones")


def _address(hub_id: str | None, url: str) -> str:
    """Where weights come from; timm prefers the hub."""
    return f"{HUGGING_FACE}/{hub_id}" if hub_id else url


def _cached(hub_id: str | None, url: str) -> WeightsInfo | None:
    """The file that timm has just read: in the cache of the hub, or else in that of torch.hub."""
    from huggingface_hub import try_to_load_from_cache  # comes with timm

    if hub_id is None:
        file = hub_folder() / Path(url).name
        return describe(file, url) if file.is_file() else None
    repository, _, revision = hub_id.partition("@")
    for name in HUB_FILES:
        found = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return describe(Path(found), f"{HUGGING_FACE}/{repository}/resolve/{revision or 'main'}/{name}")
    return None
