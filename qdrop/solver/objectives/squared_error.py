"""Squared error, the published objective (Wei et al., QDrop, ICLR 2022, algorithm 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qdrop.solver.objectives import Objective


class SquaredError(Objective):
    """:func:`reconstruction_loss` to the full-precision outputs."""

    terms = ("squared_error",)

    def __call__(self, outs: Sequence[Tensor], *needed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See :meth:`Objective.__call__`."""
        (targets,) = needed
        return (reconstruction_loss(outs, targets),)


def reconstruction_loss(outs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """:func:`squared_error` of a unit's outputs, summed over them.

    Args:
        outs: The quantized unit's outputs.
        targets: The full-precision ones.

    Returns:
        A scalar.
    """
    errors = [squared_error(out, target) for out, target in zip(outs, targets, strict=True)]
    return errors[0] if len(errors) == 1 else torch.stack(errors).sum()


def squared_error(out: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over channels (dim 1), averaged over batch and positions.

    Args:
        out: An output of the quantized unit `[N, C, ...]`, or `[N]`, which has one channel.
        target: The same of the full-precision one, same shape.

    Returns:
        A scalar.
    """
    error = out - target
    channels = error.shape[1] if error.ndim > 1 else 1
    return (error * error).sum() / (error.numel() / channels)
