"""Squared error weighted by the Fisher diagonal (Li et al., *BRECQ*, ICLR 2021, eq. 10).

The loss of the network changes by `dz^T H dz / 2` where a unit's output z is off by dz; the Hessian H is approximated
by the diagonal of the Fisher matrix, `(dL/dz)^2`, one number for each element of each image's output. L is the
divergence of the network's predictions, unit and all before it quantized, from those in full precision: no labels are
needed. The numbers are divided by their mean, so that errors keep their size beside the rounding term.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from qdrop.solver.activations.cache import Separate, Value, pieces
from qdrop.solver.objectives import Objective
from qdrop.solver.objectives.divergence import divergence
from qdrop.solver.objectives.squared_error import squared_error
from qdrop.solver.objectives.surroundings import Rest, Surroundings


class Fisher(Objective):
    """:func:`squared_error` times the unit's Fisher diagonal."""

    needs = ("target", "beside")
    terms = ("fisher",)

    def prepare(self, around: Surroundings) -> Sequence[Value]:
        """The Fisher diagonal of each of the unit's outputs, in its shape."""
        rest = around.rest()
        inputs = [pair.quantized for pair in around.inputs]
        others = [around.values(name) for name in rest.others]
        full, quantized = [pair.full for pair in others], [pair.quantized for pair in others]
        values = (*inputs, *around.targets, *full, *quantized)
        counts = [len(inputs), len(around.targets), len(full), len(quantized)]
        return [_with_mean_one(value) for value in around.run(_Diagonal(around, rest, counts), values)]

    def __call__(self, outs: Sequence[Tensor], *needed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See :meth:`Objective.__call__`."""
        targets, weights = needed
        errors = [
            squared_error(out * weight.sqrt(), target * weight.sqrt())
            for out, target, weight in zip(outs, targets, weights, strict=True)
        ]
        return (torch.stack(errors).sum(),)


class _Diagonal(nn.Module):
    """From rows of values, in four groups one behind the other, to the squared gradients for the unit's outputs."""

    def __init__(self, around: Surroundings, rest: Rest, counts: Sequence[int]) -> None:
        super().__init__()
        self._around, self._rest, self._counts = around, rest, list(counts)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        ends = accumulate(self._counts, initial=0)
        inputs, targets, full, quantized = (values[first:end] for first, end in pairwise(ends))
        return fisher_diagonal(self._rest, self._around.quantized(inputs), targets, full, quantized)


def fisher_diagonal(
    rest: Rest,
    outs: Sequence[Tensor],
    targets: Sequence[Tensor],
    others_full: Sequence[Tensor],
    others_quantized: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """`(dL/dz)^2` for each element z of each image's output.

    Args:
        rest: The network behind the unit.
        outs: The quantized unit's outputs `[B, ...]`.
        targets: The full-precision ones.
        others_full: What the rest reads beside them, in the full-precision network.
        others_quantized: The same in the quantized network.
    """
    with torch.no_grad():
        wanted = rest(targets, others_full)
    leaves = [out.detach().requires_grad_() for out in outs]
    with torch.enable_grad():
        loss = divergence(rest(leaves, others_quantized), wanted)
    return tuple(gradient.square() for gradient in torch.autograd.grad(loss, leaves, materialize_grads=True))


def _with_mean_one(diagonal: Value) -> Value:
    """The same divided by its mean; all ones where it is nothing."""
    rows = [piece[:] for (piece,) in pieces([diagonal])]
    mean = torch.cat([batch.flatten() for batch in rows]).mean()
    found = [batch / mean if mean > 0 else torch.ones_like(batch) for batch in rows]
    return Separate(found) if isinstance(diagonal, Separate) else found[0]
