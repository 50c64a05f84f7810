"""Which neighbouring units learn as one."""

import pytest
import torch
from networks import images, network, quantized

from qdrop.config import ReconConfig
from qdrop.graph.split import segments
from qdrop.graph.units import UnitSpec
from qdrop.quantization.state import quantizing
from qdrop.solver import recon
from qdrop.solver.granularity import join, mixed, neighbours, unit_losses, widest

CPU = torch.device("cpu")


def test_the_pairs_whose_losses_differ_most():
    """A quarter of four pairs is one, of five two; squared differences of 1, 5, 4, 4.5, 9 are 16, 1, 0.25, 20.25."""
    losses = dict(zip("abcde", (1.0, 5.0, 4.0, 4.5, 9.0), strict=True))
    pairs = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
    assert widest(pairs, losses) == [("d", "e")]
    assert widest([*pairs, ("e", "a")], losses) == [("d", "e"), ("e", "a")]  # 64 is the largest
    assert widest(pairs[:1], losses) == pairs[:1] and widest([], losses) == []


def test_joined_units_hold_what_both_held():
    a, b, c, d = (UnitSpec(name, "block", 2, 1, (f"{name}_1", f"{name}_2")) for name in "abcd")
    assert join([a, b, c, d], []) == [a, b, c, d]
    two = UnitSpec("b", "block", 4, 2, ("b_1", "b_2", "c_1", "c_2"))
    assert join([a, b, c, d], [("b", "c")]) == [a, two, d]
    (four,) = join([a, b, c, d], [("a", "b"), ("b", "c"), ("c", "d")])
    assert (four.module, four.weights) == ("a", 8)


def test_units_of_a_network_joined_and_learned():
    model, plan = quantized(network("residual"))
    assert neighbours(segments(model, plan)) == [("body.0", "body.1")]
    found = mixed(model, plan, [{"x": images()[:3]}, {"x": images()[3:]}], CPU)
    assert [unit.module for unit in found.units] == ["stem.0", "body.0", "head"]
    with quantizing(model):
        expected = model(images())
    *_, last = segments(model, found)
    values = {"x": images()}
    with quantizing(model):
        for part in segments(model, found):
            values |= dict(zip(part.outputs, part.module(*(values[n] for n in part.inputs)), strict=True))
    assert torch.equal(values[last.outputs[0]], expected)
    config = ReconConfig(batch_size=4, iters=3, compile="off")
    reports = list(recon.reconstruct(model, found, {"x": images()}, config, 0, CPU))
    assert [report.unit for report in reports] == ["stem.0", "body.0", "head"]


def test_losses_are_those_that_a_walk_reports_before_it_learns():
    model, plan = quantized(network("residual"))
    losses = unit_losses(segments(model, plan), [{"x": images()[:6]}, {"x": images()[6:]}], CPU)
    config = ReconConfig(batch_size=8, iters=1, round_lr=0.0, scale_lr=0.0, compile="off")
    for report in recon.reconstruct(model, plan, {"x": images()}, config, 0, CPU):
        assert losses[report.unit] == pytest.approx(report.loss_before, rel=1e-4)
