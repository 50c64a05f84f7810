"""Prediction difference (Liu et al., *PD-Quant*, CVPR 2023, eq. 6): what a unit's error does to the predictions.

`||out - target||^2 + KL(softmax(p / T), softmax(q / T)) / r`: beside the squared error of the unit, the divergence of
the predictions q, which the rest of the network in full precision makes of the unit's outputs, from those in full
precision, p. T and r are those of the published code for ResNets. Each iteration runs the rest of the network too,
forward and backward: early units of deep networks take many times longer.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from qdrop.solver.activations.cache import Value
from qdrop.solver.objectives import Objective
from qdrop.solver.objectives.divergence import divergence
from qdrop.solver.objectives.squared_error import reconstruction_loss
from qdrop.solver.objectives.surroundings import Rest, Surroundings

TEMPERATURE = 4.0
"""T."""
R = 0.1
"""r."""


class PredictionDifference(nn.Module, Objective):
    """:func:`reconstruction_loss`, and the divergence of the network's predictions; a module, as it holds the rest."""

    needs = ("target", "beside")
    terms = ("squared_error", "prediction_difference")

    def __init__(self) -> None:
        super().__init__()
        self.rest: Rest | None = None

    def prepare(self, around: Surroundings) -> Sequence[Value]:
        """The predictions in full precision, then what the rest reads beside the unit's outputs, likewise."""
        self.rest = rest = around.rest()
        others = [around.values(name).full for name in rest.others]
        return (*around.run(_Predictions(rest, len(around.targets)), (*around.targets, *others)), *others)

    def forward(self, outs: Sequence[Tensor], *needed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See :meth:`Objective.__call__`."""
        assert self.rest is not None, "an objective is prepared for its unit first"
        targets, beside = needed
        count = len(self.rest.outputs)
        difference = divergence(self.rest(outs, beside[count:]), beside[:count], TEMPERATURE) / len(outs[0])
        return reconstruction_loss(outs, targets), difference / R

    __call__ = nn.Module.__call__


class _Predictions(nn.Module):
    """From rows of a unit's outputs, and of other values behind them, to the predictions."""

    def __init__(self, rest: Rest, outputs: int) -> None:
        super().__init__()
        self._rest, self._outputs = rest, outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self._rest(values[: self._outputs], values[self._outputs :])
