"""Adam for an iteration that has its gradients at hand, as a function of them and the rate."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from qdrop.quantization.layout import laid_out_as


class FusedAdam:
    """The moments of some parameters, and Adam's step (Kingma and Ba, 2015, algorithm 1; its default betas).

    Bit for bit the step of `torch.optim.Adam(parameters, fused=True)`, without what comes with an optimizer of
    that class: creating one imports `torch._dynamo`, 150 MB and two seconds where nothing else has done so.

    Args:
        parameters: What is learned, all on one device.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters: list[Tensor] = list(parameters)
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in self._parameters]

    def __len__(self) -> int:
        """Number of parameters."""
        return len(self._parameters)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Change the parameters in place.

        Args:
            gradients: One of its shape for each parameter, in order.
            rate: Learning rate of this step.
        """
        adam(
            self._parameters,
            # The fused step goes along memory, whatever the strides.
            [laid_out_as(g, p) for g, p in zip(gradients, self._parameters, strict=True)],
            self._means,
            self._squares,
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


def cosine_rate(rate: float, done: int, iters: int) -> float:
    """`rate * (1 + cos(pi * done / iters)) / 2` (Loshchilov and Hutter, SGDR, 2017, eq. 5, without restarts).

    Args:
        rate: Rate of the first iteration.
        done: Iterations before this one.
        iters: All of them.
    """
    return rate * (1 + math.cos(math.pi * done / iters)) / 2
