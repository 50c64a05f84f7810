"""Networks of torchvision and timm bring how their images are prepared; what is set by hand wins."""

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from torchvision import models

from qdrop.config import DataConfig, config_from_dict, load_config
from qdrop.models.preparation import preparation
from qdrop.solver.imagenet_util import validation_loader

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
KNOWN = {  # size, resize, crop, interpolation, (mean, deviation): read off the libraries' own pages of these weights
    "torchvision:resnet18": (224, 256, "center", "bilinear", IMAGENET),
    "torchvision:resnet50": (224, 232, "center", "bilinear", IMAGENET),
    "torchvision:inception_v3": (299, 342, "center", "bilinear", IMAGENET),
    "torchvision:efficientnet_b1": (240, 255, "center", "bilinear", IMAGENET),
    "torchvision:swin_t": (224, 232, "center", "bicubic", IMAGENET),
    "timm:mobilenetv3_small_100": (224, 256, "center", "bicubic", IMAGENET),
    "timm:vit_base_patch16_224.augreg_in21k_ft_in1k": (224, 248, "center", "bicubic", HALF),
    "timm:inception_v3.tv_in1k": (299, 341, "center", "bicubic", HALF),
    "timm:convnext_tiny.in12k_ft_in1k_384": (384, 384, "squash", "bicubic", IMAGENET),
}
NONE = ["resnet18", "timm:no_such", "torchvision:no_such", "torchvision:fcn_resnet50", "other:resnet18", ":", "timm:"]


@pytest.mark.parametrize("type", KNOWN)
def test_what_is_known_of_networks(type):
    size, resize, crop, interpolation, (mean, std) = KNOWN[type]
    expected = {"input_size": size, "test_resize": resize, "crop_mode": crop, "interpolation": interpolation}
    assert preparation(type) == {**expected, "mean": mean, "std": std}
    data = config_from_dict({"model": {"type": type}}).data
    assert (data.input_size, data.test_resize, data.crop_mode, data.interpolation) == (
        size,
        resize,
        crop,
        interpolation,
    )
    assert (list(data.mean), list(data.std)) == (mean, std)


def of_library(type):
    """The library's own preparation of an image."""
    library, _, name = type.partition(":")
    if library == "timm":
        return timm.data.create_transform(**timm.data.resolve_data_config(timm.get_pretrained_cfg(name).to_dict()))
    return models.get_model_weights(name).DEFAULT.transforms()


@pytest.mark.parametrize("type", KNOWN)
@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 640), (64, 64)])
def test_images_are_the_same_as_the_library_makes_them(type, width, height, tmp_path):
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        image.save(tmp_path / split / "a" / "0.png")
    data = {"path": str(tmp_path), "num_workers": 0}
    ((images, _),) = validation_loader(config_from_dict({"model": {"type": type}, "data": data}).data)
    assert torch.allclose(images[0], of_library(type)(image), atol=1e-6)


@pytest.mark.parametrize("type", NONE)
def test_other_networks_bring_nothing(type):
    assert preparation(type) == {}
    assert config_from_dict({"model": {"type": type}}).data == DataConfig()


def test_what_is_set_by_hand_wins(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {interpolation: bilinear}")
    (tmp_path / "c.yaml").write_text("base: base.yaml\nmodel: {type: 'timm:inception_v3'}\ndata: {std: [1, 1, 1]}")
    data = load_config(tmp_path / "c.yaml", ["data.test_resize=320"]).data
    assert (data.interpolation, data.std, data.test_resize) == ("bilinear", (1, 1, 1), 320)
    assert (data.input_size, list(data.mean)) == (299, HALF[0])


def test_a_network_named_on_the_command_line_brings_its_own(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {batch_size: 8}")
    data = load_config(tmp_path / "c.yaml", ["model.type=torchvision:swin_t"]).data
    assert (data.batch_size, data.test_resize, data.interpolation) == (8, 232, "bicubic")


def test_another_size_is_cropped_in_the_same_proportion():
    for type, size, resize in (("torchvision:resnet18", 112, 128), ("timm:mobilenetv3_small_100", 448, 512)):
        assert config_from_dict({"model": {"type": type}, "data": {"input_size": size}}).data.test_resize == resize


@pytest.mark.parametrize("kind", ["cifar10", "digits"])
def test_other_images_are_prepared_as_ever(kind):
    data = {"type": kind}
    assert config_from_dict({"model": {"type": "timm:inception_v3"}, "data": data}).data == DataConfig(type=kind)
