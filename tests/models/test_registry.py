"""Models by name: ours, torchvision's, timm's; and what is said of a name or option that does not exist."""

import logging

import pytest
import torch
from golden import GOLDEN_DETECTORS, GOLDEN_MODELS

from qdrop.models import BUILDERS, ModelError, WeightsError, build_model, build_model_with_info
from qdrop.models.registry import network_of


def test_every_network_of_the_paper_is_there():
    assert {*GOLDEN_MODELS.values(), *GOLDEN_DETECTORS.values()} | {
        "digits_resnet",
        "yolo_fastestv2",
        *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    } == set(BUILDERS)


def test_a_model_comes_in_eval_mode_with_its_options():
    model = build_model("resnet18", {"num_classes": 5})
    assert not any(module.training for module in model.modules())
    assert model.fc.out_features == 5


def test_a_checkpoint_of_another_network_is_told_in_a_line(tmp_path):
    torch.save({"state_dict": build_model("resnet20").state_dict()}, tmp_path / "net.pth")
    with pytest.raises(WeightsError) as error:
        build_model("digits_resnet", path=str(tmp_path / "net.pth"))
    told = f"{tmp_path / 'net.pth'} is a checkpoint of resnet20, not of digits_resnet"
    assert str(error.value) == f"{told}: correct model.path, or set model.type = resnet20"


@pytest.mark.parametrize("name", GOLDEN_DETECTORS.values())
def test_a_detector_is_known_by_its_keys(name):
    with torch.device("meta"):
        state = BUILDERS[name]().state_dict()
    assert network_of(state) == name


def test_random_weights_are_announced(caplog):
    with caplog.at_level(logging.WARNING, logger="qdrop"):
        _, info = build_model_with_info("resnet20")
    assert info is None
    assert "resnet20 has random weights" in caplog.text


def test_the_weights_that_were_loaded_are_told(tmp_path, caplog):
    source = build_model("resnet20")
    torch.save(source.state_dict(), tmp_path / "net.pth")
    caplog.clear()
    model, info = build_model_with_info("resnet20", {}, str(tmp_path / "net.pth"))
    assert info.path == str(tmp_path / "net.pth")
    assert torch.equal(model.linear.weight, source.linear.weight)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "model_type, near",
    [
        ("resnet19", "resnet18"),
        ("regnetx_600", "regnetx_600m"),
        ("torchvision:resnet181", "torchvision:resnet18"),
        ("timm:mobilenetv3_smal_100", "timm:mobilenetv3_small_100"),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(model_type, near):
    with pytest.raises(ModelError) as error:
        build_model(model_type)
    assert f"{model_type}:" in str(error.value)
    suggestions = str(error.value).partition("did you mean ")[2].split("?")[0].split(";")[0]
    assert near in suggestions.split(", ")


def test_an_unknown_library():
    with pytest.raises(ModelError, match=r"hub:resnet18: expected a built-in name, torchvision:NAME or timm:NAME"):
        build_model("hub:resnet18")


@pytest.mark.parametrize("model_type", ["resnet18", "torchvision:resnet18", "timm:resnet18"])
def test_an_unknown_option_is_named(model_type):
    with pytest.raises(ModelError, match=r"num_clases.*resnet18"):
        build_model(model_type, {"num_clases": 5})


@pytest.mark.parametrize("model_type", ["torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050"])
def test_library_models_take_options_and_files(model_type, tmp_path):
    source = build_model(model_type, {"num_classes": 5})
    torch.save(source.state_dict(), tmp_path / "net.pth")
    model, info = build_model_with_info(model_type, {"num_classes": 5}, str(tmp_path / "net.pth"))
    assert info.path == str(tmp_path / "net.pth")
    assert not model.training
    first, last = next(model.parameters()), list(model.parameters())[-1]
    assert torch.equal(first, next(source.parameters()))
    assert last.shape == (5,)
