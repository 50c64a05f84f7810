"""Adam's step and the rate of the scales, against PyTorch's optimizer and scheduler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from qdrop.solver.adam import FusedAdam, cosine_rate

PROGRAM = """
import sys
import torch
from torch import nn
import qdrop
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
config = {"calibrate": 8, "recon": {"iters": 2, "batch_size": 4, "compile": "off"}}
qdrop.quantize(network, torch.randn(8, 3, 8, 8), config)
print("torch._inductor.compile_fx" in sys.modules)  # capturing imports the rest
"""


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    return [nn.Parameter(weight), nn.Parameter(torch.tensor(0.5))]


def test_the_step_is_that_of_the_optimizer_bit_for_bit():
    ours, theirs = parameters(), parameters()
    mine, reference = FusedAdam(ours), torch.optim.Adam(theirs, fused=True)
    for step in range(1, 6):
        rate = reference.param_groups[0]["lr"] = 1e-2 / step
        gradients = [torch.randn_like(p) for p in ours]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        # A gradient in another layout than its parameter's must reach the same elements.
        mine.step([gradients[0].contiguous(), gradients[1]], rate)
        reference.step()
    assert len(mine) == 2
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], parameters()[0])


def test_nothing_to_learn():
    nothing = FusedAdam([])
    nothing.step([], 1e-3)
    assert len(nothing) == 0


def test_the_rate_is_that_of_the_scheduler():
    optimizer = torch.optim.Adam(parameters(), lr=4e-5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for done in range(50):
        assert cosine_rate(4e-5, done, 50) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()
    assert cosine_rate(4e-5, 0, 50) == 4e-5


def test_an_eager_run_does_not_pay_for_the_compiler():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "False"
