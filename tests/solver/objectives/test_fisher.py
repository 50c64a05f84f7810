"""The Fisher diagonal on a network whose gradients can be written down."""

import pytest
import torch
from networks import images, network, quantized
from torch import nn

import qdrop
from qdrop.graph.split import segments
from qdrop.solver.objectives.divergence import divergence
from qdrop.solver.objectives.fisher import Fisher, fisher_diagonal
from qdrop.solver.objectives.surroundings import Rest


def test_divergence():
    """Two classes, of equal score in full precision: `log(cosh(d/2))` for scores that differ by d; 0 for equal ones."""
    out, target = torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, 3.0]])
    assert divergence([out], [target]).item() == pytest.approx(float(torch.log(torch.cosh(torch.tensor(1.0)))))
    assert divergence([out], [target], 2.0).item() == pytest.approx(float(torch.log(torch.cosh(torch.tensor(0.5)))))
    assert divergence([target], [target]) == 0


def test_fisher_diagonal_of_scores_is_the_squared_difference_of_probabilities():
    """The unit gives the scores z themselves: dL/dz = softmax(z) - softmax(target), for each image alone."""
    outs = torch.tensor([[0.0, 0.0], [2.0, 1.0]])
    targets = torch.tensor([[torch.log(torch.tensor(3.0)), 0.0], [2.0, 1.0]])
    (found,) = fisher_diagonal(lambda values, others: values, [outs], [targets], (), ())
    torch.testing.assert_close(found, torch.tensor([[(0.5 - 0.75) ** 2, (0.5 - 0.25) ** 2], [0.0, 0.0]]))


def test_error_counts_by_its_weight():
    out, target, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 0.5]])
    assert Fisher()([out], [target], [weight])[0].item() == pytest.approx(3 * 1 + 0.5 * 4)


@pytest.mark.parametrize("name", ["residual", "unet"])
def test_the_rest_of_a_network_is_the_network(name):
    """From any unit on, with what was kept for others, its outputs come out; in full precision."""
    model, plan = quantized(network(name))
    parts = segments(model, plan)
    values = {"x": images()}
    for part in parts:
        values |= dict(zip(part.outputs, part.module(*(values[n] for n in part.inputs)), strict=True))
    expected = model(images())
    for index, part in enumerate(parts):
        rest = Rest(parts[index:])
        found = rest([values[n] for n in part.outputs], [values[n] for n in rest.others])
        assert len(found) == 1 and torch.equal(found[0], expected)


def test_a_network_learned_by_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    recon = {"preset": "fast", "iters": 8, "batch_size": 4, "objective": "fisher", "compile": "off"}
    found, report = qdrop.quantize(model, images(), {"method": "brecq", "calibrate": 8, "recon": recon})
    plain, _ = qdrop.quantize(
        model, images(), {"method": "brecq", "calibrate": 8, "recon": recon | {"objective": "squared_error"}}
    )
    assert len(report.units) == 2 and not torch.equal(found(images()), plain(images()))
