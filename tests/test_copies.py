"""Copies of a quantized network, its state in another one, and other types: the same bits, or refused in words."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import quantize_dynamic

import qdrop


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.hidden, self.fc = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        y = F.relu(self.bn(self.conv1(x)))
        y = F.relu(self.conv2(y) + y).mean((2, 3))
        return self.fc(F.relu(self.hidden(self.norm(y))))


def images():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized(w_bit=4, a_bit=4, symmetric=False, seed=0):
    torch.manual_seed(seed)
    settings = {"observer": "MinMaxObserver", "symmetric": symmetric}
    config = {"w_qconfig": settings | {"bit": w_bit}, "a_qconfig": settings | {"bit": a_bit}, "recon": None}
    return qdrop.quantize(Net().eval(), images(), config | {"calibrate": 16, "calibrate_range": 16})[0]


def torch_saved(network):
    data = io.BytesIO()
    torch.save(network, data)
    data.seek(0)
    return torch.load(data, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "torch.save": torch_saved,
    "a pickled copy": lambda network: pickle.loads(pickle.dumps(copy.deepcopy(network))),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("loaded", [False, True])
def test_a_copy_is_the_same_network(duplicate, loaded, tmp_path):
    network = quantized()
    if loaded:
        qdrop.save(network, tmp_path / "first.safetensors", {"some": "settings"}, {"top1": 1.0})
        network = qdrop.load(tmp_path / "first.safetensors")
    twin = duplicate(network)
    assert torch.equal(twin(images()), network(images()))
    assert twin.meta["plan"] == network.meta["plan"]
    assert all(twin.meta[key] == network.meta[key] for key in ("config", "metrics") if key in network.meta)
    qdrop.save(network, tmp_path / "network.safetensors")
    qdrop.save(twin, tmp_path / "twin.safetensors")
    assert (tmp_path / "twin.safetensors").read_bytes() == (tmp_path / "network.safetensors").read_bytes()


def test_a_pickle_needs_no_class_of_the_users(tmp_path):
    network = quantized()
    (tmp_path / "network.pickle").write_bytes(pickle.dumps(network))
    torch.save((images(), network(images())), tmp_path / "expected.pt")
    code = (
        "import pickle, torch; x, y = torch.load('expected.pt')\n"
        "print(torch.equal(pickle.load(open('network.pickle', 'rb'))(x), y))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


CASTS = {
    "half": lambda network: network.half(),
    "double": lambda network: network.double(),
    "bfloat16": lambda network: network.to(torch.bfloat16),
    "type": lambda network: network.type(torch.float16),
    "a layer": lambda network: network.get_submodule("conv2").half(),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_another_type_is_refused_and_changes_nothing(cast):
    network = quantized()
    before = network(images())
    with pytest.raises(TypeError, match=r"computes in torch.float32"):
        cast(network)
    assert torch.equal(network(images()), before)


def test_what_changes_no_type_is_allowed():
    network = quantized()
    before = network(images())
    for same in (network.float(), network.to("cpu"), network.cpu(), network.eval()):
        assert torch.equal(same(images()), before)
    assert next(network.to("meta").parameters()).is_meta


def test_part_of_another_type_is_not_saved(tmp_path):
    network = quantized()
    norm = network.get_submodule("norm")
    norm.weight.data = norm.weight.data.half()
    with pytest.raises(qdrop.CheckpointError, match=r"norm.weight.*float16"):
        qdrop.save(network, tmp_path / "file.safetensors")
    assert not (tmp_path / "file.safetensors").exists()


def test_what_would_not_load_is_not_saved(tmp_path):
    network = quantized()
    with torch.no_grad():
        network.get_submodule("norm").bias[2] = torch.nan
    with pytest.raises(qdrop.CheckpointError, match=r"norm.bias.*nan"):
        qdrop.save(network, tmp_path / "file.safetensors")
    assert not (tmp_path / "file.safetensors").exists()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("other", [{"a_bit": 8}, {"w_bit": 2}, {"symmetric": True}])
def test_state_of_other_bits_is_refused(other, strict):
    low, big = quantized(), quantized(**other)
    with pytest.raises(RuntimeError, match=r"\[bit, symmetric\] = .*same settings"):
        low.load_state_dict(big.state_dict(), strict=strict)


def test_state_of_the_same_bits_is_loaded():
    network, other = quantized(), quantized(seed=1)
    assert not torch.equal(other(images()), network(images()))
    other.load_state_dict({key: value.clone() for key, value in network.state_dict().items()})
    assert torch.equal(other(images()), network(images()))


def integers_as_weights():
    model = Net().eval()
    model.hidden.weight = nn.Parameter(torch.ones(6, 6, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layers", [{nn.Linear}, {"fc"}])
def test_a_dynamically_quantized_model_is_refused(layers):
    model = quantize_dynamic(Net().eval(), layers, dtype=torch.qint8)
    with pytest.raises(qdrop.QdropError, match=r"_packed_params.*quantized already"):
        qdrop.quantize(model, images(), {"recon": None})


def test_a_model_with_integer_weights_is_refused():
    with pytest.raises(qdrop.QdropError, match=r"'hidden.weight' is torch.int8.*quantized already"):
        qdrop.quantize(integers_as_weights(), images(), {"recon": None})
