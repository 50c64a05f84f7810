"""How the networks of torchvision and timm want their images: settings that come with a name.

preparation("timm:mobilenetv3_small_100")["interpolation"]      # bicubic
"""

import math
from typing import Any

from qdrop.extras import extra


def preparation(type: str, input_size: int | None = None) -> dict[str, Any]:
    """Settings of the section `data` as a network was trained and measured by its library; none of other networks.

    Args:
        type: A name as `model.type` has it: `torchvision:NAME`, `timm:NAME`, or any other.
        input_size: Height and width of its input in pixels; None: its own. Validation images are resized in proportion.

    Returns:
        `input_size`, `test_resize`, `crop_mode`, `interpolation`, `mean` and `std`; empty of a network that the library
        does not know or that is no classifier.
    """
    library, _, name = type.rpartition(":")
    described = {"timm": _timm, "torchvision": _torchvision}.get(library)
    return described(name, input_size) if described else {}


def _timm(name: str, input_size: int | None) -> dict[str, Any]:
    with extra("timm", "networks of timm"):
        import timm
        from timm.data import resolve_data_config

    if not timm.is_model(name) or (source := timm.get_pretrained_cfg(name)) is None:
        return {}
    own = resolve_data_config(pretrained_cfg=source.to_dict())
    size = input_size or own["input_size"][-1]  # of (C, H, W)
    return {
        "input_size": size,
        "test_resize": max(size, math.floor(size / own["crop_pct"])),
        "crop_mode": "squash" if own["crop_mode"] == "squash" else "center",  # no classifier has another
        "interpolation": own["interpolation"],
        "mean": list(own["mean"]),
        "std": list(own["std"]),
    }


def _torchvision(name: str, input_size: int | None) -> dict[str, Any]:
    from torchvision import models
    from torchvision.transforms._presets import ImageClassification

    weights = getattr(models.get_model_weights(name), "DEFAULT", None) if name in models.list_models() else None
    own = weights.transforms() if weights else None
    if not isinstance(own, ImageClassification):
        return {}
    (crop,), (resize,) = own.crop_size, own.resize_size
    size = input_size or crop
    return {
        "input_size": size,
        "test_resize": max(size, size * resize // crop),
        "crop_mode": "center",
        "interpolation": own.interpolation.value,
        "mean": list(own.mean),
        "std": list(own.std),
    }
