"""Networks with weights and biases of any size: every file of one computes what the network itself does.

    python -m pytest tests/test_hostile_numerics.py -m slow -s     # prints how many of each kind do

Sizes are drawn from 1e-30 to 1e30, for a layer, some channels or one; some are 0, as in a pruned network.
"""

import random

import pytest
import torch
import torch.nn.functional as F
from onnx_runs import exported
from torch import nn

import qdrop

NETWORKS = 12
"""Of each kind."""
MOST = 0.02
MEDIAN = 0.01
"""Of the largest logit: the largest difference of an image, and that of the median image. Values halfway between two
levels move an ordinary network of these bits by up to 0.006 in the median; a lost bias moved these by 0.1 to 1."""


class Net(nn.Module):
    """Two convolutions, joined in one of several ways, and two linear layers."""

    def __init__(self, join):
        super().__init__()
        self.join = join
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.hidden, self.fc = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, x):
        y = F.relu(self.bn(self.conv1(x)))
        return self.fc(F.relu(self.hidden(F.relu(self.join(self.conv2(y), y)).mean((2, 3)))))


class DepthwiseNet(Net):
    def __init__(self, join):
        super().__init__(join)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8)


KINDS = {
    "sum": lambda: Net(torch.add),
    "product": lambda: Net(torch.mul),
    "concatenation": lambda: Net(lambda a, b: torch.cat([a[:, :4], b[:, 4:]], 1)),
    "activation function": lambda: Net(lambda a, b: F.silu(a)),
    "pooled sum": lambda: Net(lambda a, b: F.max_pool2d(a + b, 2)),
    "depthwise": lambda: DepthwiseNet(torch.add),
}


@torch.no_grad()
def resize(model, draw):
    """Multiply half of the parameters before the last two layers, which would hide it, by a size each."""
    for name, parameter in model.named_parameters():
        if draw.random() < 0.5 and name.startswith(("bn", "conv2")):
            part = draw.choice([slice(None), slice(0, 4), slice(2, 3)])
            parameter[part] *= draw.choice([0, 10 ** draw.uniform(-30, 30), 10 ** draw.uniform(-30, 30)])


def networks(kind):
    """Quantized networks whose originals give finite values, not all 0."""
    draw, made = random.Random(0), 0
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    while made < NETWORKS:
        torch.manual_seed(made)
        model = KINDS[kind]().eval()
        resize(model, draw)
        settings = {"observer": "MinMaxObserver", "symmetric": draw.random() < 0.3}
        config = {
            "w_qconfig": settings | {"bit": draw.choice([2, 4]), "ch_axis": draw.choice([0, 0, -1])},
            "a_qconfig": settings | {"bit": 4, "ch_axis": draw.choice([-1, -1, 1])},
            "placement": draw.choice(["published", "integer"]),
            "recon": None,
        }
        if model(x).isfinite().all():
            network = qdrop.quantize(model, x, config | {"calibrate": 8, "calibrate_range": 8})[0]
            if network(x).isfinite().all() and network(x).any():
                yield network, x
                made += 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_files_of_networks_with_parameters_of_any_size(kind, tmp_path):
    failed, count = [], 0
    for index, (network, x) in enumerate(networks(kind)):
        expected = network(x)
        for container in ("native", "int8"):
            out = exported(network, x, tmp_path, container)
            apart = (out - expected).abs().amax(1) / expected.abs().max()
            count += 1
            if not (apart.max() < MOST and apart.median() < MEDIAN):
                failed.append(f"network {index}, {container}: {apart.max():.3g}, median {apart.median():.3g}")
        qdrop.save(network, tmp_path / "packed.safetensors")
        count += 1
        if not torch.equal(qdrop.load(tmp_path / "packed.safetensors")(x), expected):
            failed.append(f"network {index}, packed")
    print(f"\n{kind}: {count - len(failed)} of {count} files compute the same")
    assert not failed, "\n".join(failed)
