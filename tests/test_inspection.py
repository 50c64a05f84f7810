"""What `qdrop inspect` counts."""

import math

import torch
from networks import quantized
from torch import nn

from qdrop.checkpoint import describe
from qdrop.inspection import checkpoint_view


class Scaled(nn.Module):
    """Its own parameters are called as those of quantizers, and as a packed weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.zero_point = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        return (self.layer(x) * self.scale + self.zero_point).mean((2, 3))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Scaled()

    def forward(self, x):
        return self.body(x)


def test_parameters_called_scale_are_counted():
    model, _ = quantized(Network().eval())
    floats = 4 * sum(math.prod(parameter.shape) for parameter in Network().parameters())
    _, totals = checkpoint_view(describe(model), 100)
    (shown,) = [cell for cell in totals.columns[1].cells if "in float32" in str(cell)]
    assert f"in float32 {floats:,}:" in str(shown)
