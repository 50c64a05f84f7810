"""Calibration images of several sizes: batches stay as they are, and an iteration draws one of them."""

import pytest
import torch
from networks import bits, filled, images, network, quantized
from torch import nn

import qdrop
from qdrop.checks import InputError
from qdrop.config import ReconConfig
from qdrop.graph.split import segments
from qdrop.solver.activations.cache import Pair, Separate, run_all
from qdrop.solver.unit import reconstruct_unit

CPU = torch.device("cpu")
SIZES = [images(2), images(2, size=12)[:, :, :10], images(2, seed=1)]


@pytest.fixture(scope="module")
def stem_and_block():
    graph, plan = quantized(network("residual"), bits(2, 4))
    parts = {part.name: part.module for part in segments(graph, plan)}
    return parts["stem.0"], parts["body.0"]


def test_every_batch_passes_as_it_is(stem_and_block):
    stem, _ = stem_and_block
    (found,) = run_all(stem, [Separate(SIZES)], 32, CPU)
    assert [tuple(batch.shape[2:]) for batch in found.batches] == [(8, 8), (10, 12), (8, 8)]
    for batch, given in zip(found.batches, SIZES, strict=True):
        torch.testing.assert_close(batch, stem(given)[0])


def test_a_batch_is_drawn_as_rows_would_be(stem_and_block):
    """Four images in two batches: the same losses as with their rows drawn together."""
    stem, block = stem_and_block
    config = ReconConfig(batch_size=2, iters=4, drop_prob=1.0)
    start = {key: value.clone() for key, value in block.state_dict().items()}
    losses = []
    for given, draws in (
        (images(4), [torch.tensor(rows) for rows in ([0, 1], [2, 3]) * 2]),
        (Separate(images(4).split(2)), [torch.tensor([number]) for number in (0, 1) * 2]),
    ):
        block.load_state_dict(start)
        (x,) = run_all(stem, [given], 4, CPU)
        target = run_all(block, [x], 4, CPU)
        steps = []
        reconstruct_unit(block, [Pair(x, x)], target, config, torch.Generator(), iter(draws), steps.append)
        losses.append([float(step.reconstruction) for step in steps])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_network_is_quantized_on_them():
    config = bits(4, 4, recon=ReconConfig(iters=3))
    model, report = qdrop.quantize(network("residual"), SIZES, config)
    assert all(unit.loss_after > 0 for unit in report.units)
    with torch.no_grad():
        assert all(model(batch).isfinite().all() for batch in SIZES)


def test_a_network_of_one_size_refuses_them():
    flattened = filled(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 2)))
    with pytest.raises(InputError, match=r"different shapes \[3, 10, 12\], \[3, 8, 8\], and .* one size"):
        qdrop.quantize(flattened, SIZES, bits(4, 4))
