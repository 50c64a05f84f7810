"""How far predictions are from those of the full-precision network."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def divergence(outs: Sequence[Tensor], targets: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of `softmax(out / T)` from `softmax(target / T)`, summed over images and positions.

    Args:
        outs: Scores of the quantized network, classes along dim 1 `[B, K, ...]`.
        targets: The same of the full-precision network.
        temperature: T.

    Returns:
        A scalar, at least 0.
    """
    terms = [
        kl_div(log_softmax(o / temperature, 1), log_softmax(t / temperature, 1), reduction="sum", log_target=True)
        for o, t in zip(outs, targets, strict=True)
    ]
    return torch.stack(terms).sum()
