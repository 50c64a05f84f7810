"""The plain step is the same method: without the drop it computes what ours does, and it learns."""

import pytest
import torch
from networks import images, network, quantized

from benchmarks.fidelity import reconstruct_plainly, rows
from benchmarks.plain_step import plain, plain_step
from qdrop.config import ReconConfig
from qdrop.graph.scopes import learning_rounding
from qdrop.graph.split import segments
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers, quantizing
from qdrop.solver.activations.cache import Pair, run_all
from qdrop.solver.unit import unit_generator

CPU = torch.device("cpu")


def a_unit():
    """A block, its input and its full-precision output for eight images."""
    parts = {p.name: p for p in segments(*quantized(network("residual")))}
    full = run_all(parts["stem.0"].module, (images(),), 8, CPU)[0]
    block = parts["body.0"].module
    return block, Pair(full, full * 1.01), run_all(block, (full,), 8, CPU)[0]


def test_plain_quantizers_are_ours():
    unit, inputs, _ = a_unit()
    with quantizing(unit), learning_rounding(unit), torch.no_grad():
        torch.testing.assert_close(plain(unit, keep=1.0)(inputs.full)[0], unit(inputs.full)[0], rtol=1e-5, atol=1e-6)


def test_a_plain_step_learns():
    unit, inputs, target = a_unit()
    twin = plain(unit, keep=0.5)
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    plain_step(twin, [inputs], [target], ReconConfig(batch_size=4))(0.01, 20.0)
    moved = {name for name, p in twin.named_parameters() if not torch.equal(p, before[name])}
    assert {name.rpartition(".")[2] for name in moved} == {"alpha", "scale"}


@pytest.mark.parametrize("iters", [40])
def test_plain_reconstruction_lowers_the_error(iters):
    unit, inputs, target = a_unit()

    def error():
        with quantizing(unit), torch.no_grad():
            return (unit(inputs.quantized)[0] - target).square().mean().item()

    roundings = [q.rounding for q in quantizers(unit, Kind.WEIGHT)]
    before, nearest = error(), [r.levels.clone() for r in roundings]
    config = ReconConfig(batch_size=4, iters=iters, round_lr=0.05)
    share = reconstruct_plainly(unit, [inputs], [target], config, unit_generator(0, "body.0"), watch=None)
    flipped = sum(int((r.levels != old).sum()) for r, old in zip(roundings, nearest, strict=True))
    assert share == pytest.approx(flipped / sum(old.numel() for old in nearest)) and share > 0
    assert error() < before


def test_the_table_compares_within_each_seed():
    figures = {"seed1.qdrop.top1": 78.0, "seed1.plain.top1": 78.5, "seed2.qdrop.top1": 76.0, "seed2.plain.top1": 76.5}
    assert rows(figures, [1, 2]) == (
        ("1", "78.00", "78.50", "-0.50"),
        ("2", "76.00", "76.50", "-0.50"),
        ("all", "77.00 ± 1.41", "77.50 ± 1.41", "-0.50 ± 0.00"),
    )
