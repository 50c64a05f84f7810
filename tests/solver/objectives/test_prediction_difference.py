"""The loss of PD-Quant on numbers that can be followed by hand, and in a unit."""

import math
from dataclasses import replace

import pytest
import torch
from networks import images, network, quantized

from qdrop.config import ReconConfig
from qdrop.solver import recon
from qdrop.solver.objectives.prediction_difference import PredictionDifference
from qdrop.solver.unit import Step

CPU = torch.device("cpu")
CONFIG = ReconConfig(batch_size=4, iters=3, objective="prediction_difference", compile="off")


class Doubled(torch.nn.Module):
    """A rest of the network that gives twice the unit's outputs."""

    outputs, others = ("scores",), ()

    def forward(self, outs, others):
        return (outs[0] * 2,)


def test_squared_error_and_divergence():
    """Scores 2 and -2 of two classes against 0 and 0, at T = 4: log(cosh(0.5)), over r = 0.1."""
    objective = PredictionDifference()
    objective.rest = Doubled()
    error, difference = objective([torch.tensor([[1.0, -1.0]])], [torch.zeros(1, 2)], [torch.zeros(1, 2)])
    assert error.item() == 2 and difference.item() == pytest.approx(10 * math.log(math.cosh(0.5)), rel=1e-5)


@pytest.mark.parametrize("name", ["residual", "unet"])
def test_a_network_learned_by_it(name):
    """Each unit sees what the network makes of its outputs; the last one's outputs are the predictions."""
    model, plan = quantized(network(name))
    steps: dict[str, Step] = {}
    list(recon.reconstruct(model, plan, {"x": images()}, CONFIG, 0, CPU, watch=steps.__setitem__))
    for step in steps.values():
        assert list(step.terms) == ["squared_error", "prediction_difference", "rounding"]
        assert step.terms["prediction_difference"] > 0


def test_gradients_go_through_the_rest_of_the_network():
    """With all weight on predictions other roundings are learned than by the squared error alone."""
    learned = []
    for objective in ("squared_error", "prediction_difference"):
        model, plan = quantized(network("residual"))
        config = replace(CONFIG, objective=objective, iters=20, round_lr=0.1)
        list(recon.reconstruct(model, plan, {"x": images()}, config, 0, CPU))
        learned.append({key: value for key, value in model.state_dict().items() if key.endswith("levels")})
    assert any(not torch.equal(a, learned[1][key]) for key, a in learned[0].items())
