"""Distribution correction, on statistics that can be written down, and in a network."""

import pytest
import torch
from networks import images, network, quantized
from torch import nn

from qdrop.graph.capture import capture
from qdrop.graph.passes.norms import Norm
from qdrop.graph.split import segments
from qdrop.solver.activations.cache import Pair
from qdrop.solver.correction import Corrected, corrected, has_norms, mismatch, mismatch_of


def test_mismatch_of_one_channel():
    """y = 3, 5: mean 4, deviation 1. With beta 2, gamma 0.5, sigma 4 the norm has read a mean of 2 * 4/0.5 = 16 too
    much, and a deviation of 1 * 4/0.5 = 8 in the place of 4; a channel with gamma 0 tells nothing."""
    out = torch.tensor([[[3.0, 5.0], [7.0, 9.0]]])
    norm = Norm(torch.tensor([-0.5, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([4.0, 1.0]))
    assert mismatch_of(out, norm).item() == pytest.approx(16**2 + 4**2, rel=1e-4)


def test_what_was_folded_is_known():
    """The statistics of what the norm itself would read, of a network as it was before it was folded."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(values, 0.5, 1.5)
    graph = capture(nn.Sequential(conv, norm, nn.ReLU()).eval(), {"input": images()})
    assert has_norms(graph)
    read = conv(images()).flatten(2)
    deviations = (read.var(2, correction=0) + 1e-6).sqrt()
    expected = (read.mean(2) - norm.running_mean).square() + (deviations - norm.running_var.sqrt()).square()
    torch.testing.assert_close(mismatch(graph, [images()]), expected.sum(1).mean(), rtol=1e-3, atol=1e-3)


def test_correction_brings_statistics_nearer_and_inputs_stay_near():
    part = next(p for p in segments(*quantized(network("residual"))) if p.name == "body.0")
    x = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0)).relu()
    moved, out = Corrected(part.module, 30)(x)
    assert 0 < (moved - x).abs().max() < 0.05
    assert mismatch(part.module, [moved]) < mismatch(part.module, [x])
    assert torch.equal(out, part.module(moved)[0])


def test_a_unit_learns_on_corrected_inputs_and_quantized_ones_stay():
    part = next(p for p in segments(*quantized(network("residual"))) if p.name == "body.0")
    x = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0)).relu()
    pairs, targets = [Pair(x, x * 1.01)], part.module(x)
    assert corrected(part.module, pairs, targets, 0, None) == (pairs, targets)
    (pair,), (target,) = corrected(part.module, pairs, targets, 3, lambda module, values: module(*values))
    assert pair.quantized is pairs[0].quantized and not torch.equal(pair.full, x)
    assert torch.equal(target, part.module(pair.full)[0])
