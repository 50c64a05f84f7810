"""The own weights of torchvision and timm: which file they came from, and what is said if there is none.

Nothing is downloaded: the files are put where the libraries look before they download.
"""

import hashlib

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import get_model_weights

from qdrop.models import WeightsError, build_model, build_model_with_info
from qdrop.models.library import timm_network
from qdrop.models.weights import download

TORCHVISION, TIMM = "torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050"
URL = get_model_weights("mobilenet_v3_small").DEFAULT.url


class Custom:
    """Not a tensor."""


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """An empty cache of the Hugging Face hub, and no network; gives a function that adds a file to it."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def add(repository, name):
        folder = cache / f"models--{repository.replace('/', '--')}"
        (folder / "snapshots" / "1").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("1")
        return folder / "snapshots" / "1" / name

    return add


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(model, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_weights_of_torchvision_are_recorded(hub):
    source = build_model(TORCHVISION)
    hub.mkdir(parents=True)
    path = hub / URL.rpartition("/")[2]
    torch.save(source.state_dict(), path)
    model, info = build_model_with_info(TORCHVISION, path="auto")
    assert same(model, source) and not model.training
    assert (info.path, info.url, info.sha256) == (str(path), URL, sha256(path))


def test_weights_of_torchvision_that_hold_more_than_tensors_are_refused(hub):
    hub.mkdir(parents=True)
    torch.save({"features.0.0.weight": Custom()}, hub / URL.rpartition("/")[2])
    with pytest.raises(WeightsError, match=r"holds Python objects \(.*Custom"):
        build_model(TORCHVISION, path="auto")


def test_a_download_must_have_its_checksum(served, hub):
    folder, address = served
    save_file({"x": torch.ones(1)}, folder / "net.safetensors")
    url, digits = f"{address}/net.safetensors", sha256(folder / "net.safetensors")[:8]
    with pytest.raises(WeightsError, match=r"net\.safetensors could not be downloaded.*invalid hash value"):
        download(url, hub / "net.safetensors", sha256="00000000")
    assert list(hub.iterdir()) == []
    assert download(url, hub / "net.safetensors", sha256=digits).sha256.startswith(digits)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_timm_are_recorded(hugging_face, name):
    repository = timm.get_pretrained_cfg("mobilenetv3_small_050").hf_hub_id
    source = build_model(TIMM)
    path = hugging_face(repository, name)
    save = save_file if name.endswith("safetensors") else torch.save
    save(source.state_dict(), path)
    model, info = build_model_with_info(TIMM, path="auto")
    assert same(model, source) and not model.training
    assert (info.path, info.sha256) == (str(path), sha256(path))
    assert info.url == f"https://huggingface.co/{repository}/resolve/main/{name}"


def test_weights_of_timm_that_cannot_be_had(hugging_face):
    with pytest.raises(WeightsError) as error:
        timm_network("mobilenetv3_small_050", {}, own_weights=True)
    for part in ("timm:mobilenetv3_small_050", "https://huggingface.co/timm/mobilenetv3_small_050", "model.path"):
        assert part in str(error.value)


def test_networks_without_weights_say_so():
    name = next(name for name in timm.list_models() if not timm.get_pretrained_cfg(name).has_weights)
    with pytest.raises(WeightsError, match=f"there are no weights for timm:{name}"):
        build_model(f"timm:{name}", path="auto")
