"""Weights, biases and activations of any size, dead channels among them: every file computes what the network does."""

from itertools import product

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx_runs import outputs
from torch import nn

import qdrop
from qdrop.export import export_onnx

CONTAINERS = ["native", "int8"]
TIES = 5e-3
"""Values that a rounded bias moves over a half step change the logits by at most this share of the largest."""
TOGETHER = 27
FEW = [1e-12, 1.0, 1e12]
MANY = [1e-30, 1e-20, 1e-12, 1e-6, 1.0, 1e6, 1e12, 1e20, 1e30]


class Net(nn.Module):
    """A residual block whose second convolution is the one in question."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        y = F.relu(self.bn(self.conv1(x)))
        return self.fc(F.relu(self.conv2(y) + y).mean((2, 3)))


class Side(nn.Module):
    """Networks side by side, in one file: exporting takes seconds, whatever is in it."""

    def __init__(self, parts):
        super().__init__()
        self.names, self.parts = list(parts), nn.ModuleList(parts.values())

    def forward(self, x):
        return {name: part(x) for name, part in zip(self.names, self.parts, strict=True)}


def net(width: int = 8) -> Net:
    torch.manual_seed(0)
    return Net(width).eval()


def images(count: int = 8, size: int = 8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def quantized(model: nn.Module, x, observer: str = "MinMaxObserver", w_axis: int = 0):
    a_qconfig = {"bit": 4, "observer": observer}
    config = {"w_qconfig": a_qconfig | {"ch_axis": w_axis}, "a_qconfig": a_qconfig, "placement": "integer"}
    return qdrop.quantize(model, x, config | {"calibrate": len(x), "calibrate_range": len(x), "recon": None})[0]


@torch.no_grad()
def assert_files_agree(model, x, folder):
    expected = by_name(model(x))
    for container in CONTAINERS:
        path = export_onnx(model, x[:1], folder / f"{container}.onnx", container)
        for name, out in outputs(path, {onnx.load(path).graph.input[0].name: x}).items():
            assert (out - expected[name]).abs().max() <= TIES * expected[name].abs().max(), (container, name)
    qdrop.save(model, folder / "packed.safetensors")
    loaded = by_name(qdrop.load(folder / "packed.safetensors")(x))
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def by_name(found) -> dict:
    return found if isinstance(found, dict) else {"output": found}


@pytest.mark.parametrize("observer", ["MSEObserver", "MinMaxObserver"])
@torch.no_grad()
def test_dead_channels(observer, tmp_path):
    """Once off by 0.49 where the largest logit was 0.86: their biases left 32 bits."""
    model, x = net(16), images(16, 16)
    model.conv2.weight[3], model.conv2.bias[3] = 0, 2.0
    model.conv2.weight[5], model.conv2.bias[5] = 1e-12, -1.5
    assert_files_agree(quantized(model, x, observer), x, tmp_path)


@pytest.mark.parametrize("gamma", [0.0, 1e-12])
@torch.no_grad()
def test_dead_channels_of_a_batch_norm(gamma, tmp_path):
    model, x = net(), images()
    model.bn.weight[2:5], model.bn.bias[2:5] = gamma, torch.tensor([3.0, -3.0, 0.0])
    model = nn.Sequential(model.conv1, model.bn, nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 8))
    flat = nn.Sequential(model, nn.Flatten()).eval()
    assert_files_agree(quantized(flat, x), x, tmp_path)


@torch.no_grad()
def test_an_activation_that_is_always_zero(tmp_path):
    parts, x = {}, images()
    for bias in (0.0, 1e-6, 1.0, 1e6):
        parts[f"bias {bias:g}"] = model = net()
        model.bn.weight.zero_()
        model.bn.bias.fill_(-1)
        model.conv2.weight.mul_(1e12)
        model.conv2.bias.mul_(bias)
    assert_files_agree(quantized(Side(parts).eval(), x), x, tmp_path)


@pytest.mark.parametrize("bias", [-1e12, 1e3])
@torch.no_grad()
def test_one_scale_for_a_weight_with_a_huge_bias(bias, tmp_path):
    """A channel that the ReLU switches off is no reason to coarsen the weights of the others."""
    model, x = net(), images()
    model.conv2.bias[2] = bias
    model.conv2.weight[2] = 0
    assert_files_agree(quantized(model, x, w_axis=-1), x, tmp_path)


@torch.no_grad()
def grid(sizes, part, tmp_path):
    """Every size of the activations, of `part` of the weights and of its biases that the network itself can hold."""
    x, parts = images(), {}
    for activation, weight, bias in product(sizes, repeat=3):
        model = net()
        model.bn.weight.mul_(activation)
        model.bn.bias.add_(0.1).mul_(activation)
        model.conv2.weight[part] *= weight
        model.conv2.bias[part] *= bias
        if model(x).isfinite().all():
            parts[f"{activation:g} {weight:g} {bias:g}"] = model
    names = list(parts)
    for start in range(0, len(names), TOGETHER):
        together = {name: parts[name] for name in names[start : start + TOGETHER]}
        assert_files_agree(quantized(Side(together).eval(), x), x, tmp_path)
    return len(parts)


@pytest.mark.parametrize(
    "part", [slice(3, 4), pytest.param(slice(None), marks=pytest.mark.slow)], ids=["one channel", "all"]
)
def test_sizes(part, tmp_path):
    assert grid(FEW, part, tmp_path) == len(FEW) ** 3


@pytest.mark.slow
@pytest.mark.parametrize("part", [slice(3, 4), slice(None)], ids=["one channel", "all"])
def test_all_sizes(part, tmp_path):
    assert grid(MANY, part, tmp_path) > len(MANY) ** 3 // 2
