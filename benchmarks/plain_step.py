"""The reconstruction step written the plain way, straight from the formulas: what the fast one is compared with.

Every quantizer is a chain of element-wise operations that autograd follows, the drop is a fresh `rand_like` and a
`where`; formulas as in qdrop/quantization.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from qdrop.config import ReconConfig
from qdrop.quantization.affine import along_channels
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.rounding.adaround import SHIFT, STRETCH
from qdrop.quantization.spec import Group, Kind
from qdrop.quantization.state import quantizers
from qdrop.solver.activations.cache import Pair, Value


def _round(x: Tensor) -> Tensor:
    """Rounding with the gradient of the identity."""
    return (x.round() - x).detach() + x


class PlainActivation(nn.Module):
    """LSQ with the random drop."""

    zero_point: Tensor

    def __init__(self, quantizer: FakeQuantize, keep: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(quantizer.scale.detach().clone())
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())
        self.qmin, self.qmax, self.keep = quantizer.qmin, quantizer.qmax, keep

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        factor = (x.numel() * self.qmax) ** -0.5
        scale = (self.scale - self.scale * factor).detach() + self.scale * factor
        level = torch.clamp(_round(x / scale) + self.zero_point, self.qmin, self.qmax)
        out = (level - self.zero_point) * scale
        return torch.where(torch.rand_like(x) < self.keep, out, x)


class PlainWeight(nn.Module):
    """AdaRound."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: FakeQuantize) -> None:
        super().__init__()
        (alpha,) = quantizer.param_groups()[Group.ROUNDING]
        self.alpha = nn.Parameter(alpha.detach().clone())
        axis = quantizer.spec.ch_axis
        self.register_buffer("scale", along_channels(quantizer.scale, alpha, axis).clone())
        self.register_buffer("zero_point", along_channels(quantizer.zero_point, alpha, axis).clone())
        self.qmin, self.qmax = quantizer.qmin, quantizer.qmax

    def soft_rounding(self) -> Tensor:
        """Shape of the weight, 0 to 1."""
        return torch.clamp(torch.sigmoid(self.alpha) * STRETCH + SHIFT, 0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """Any shape."""
        level = torch.floor(weight / self.scale) + self.soft_rounding()
        return (torch.clamp(level + self.zero_point, self.qmin, self.qmax) - self.zero_point) * self.scale


def plain(unit: fx.GraphModule, keep: float) -> fx.GraphModule:
    """A copy of a calibrated unit with plain quantizers, always on."""
    twin = copy.deepcopy(unit)
    for quantizer in quantizers(twin):
        is_weight = quantizer.spec.kind is Kind.WEIGHT
        twin.set_submodule(
            quantizer.spec.name, PlainWeight(quantizer) if is_weight else PlainActivation(quantizer, keep)
        )
    return twin


def plain_step(
    unit: fx.GraphModule, inputs: Sequence[Pair], targets: Sequence[Value], config: ReconConfig
) -> Callable[[float, float], None]:
    """One iteration each time it is called, with the weight of the rounding term and its exponent.

    Args:
        unit: What :func:`plain` returned.
        inputs: The unit's inputs for all images `[N, ...]`, in both networks.
        targets: Its full-precision outputs `[N, ...]`.
        config: Batch size, rates, iterations, drop probability.
    """
    weights = [m for m in unit.modules() if isinstance(m, PlainWeight)]
    scales = [m.scale for m in unit.modules() if isinstance(m, PlainActivation)]
    rounding = torch.optim.Adam([m.alpha for m in weights], config.round_lr)
    grids = torch.optim.Adam(scales, config.scale_lr) if scales else None
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(grids, config.iters) if grids else None
    values = [(pair.full[:], pair.quantized[:]) for pair in inputs]
    wanted = [target[:] for target in targets]

    def step(weight: float, beta: float) -> None:
        rows = torch.randint(len(wanted[0]), (config.batch_size,), device=wanted[0].device)
        given = [torch.where(torch.rand_like(f[rows]) < config.drop_prob, q[rows], f[rows]) for f, q in values]
        outs = unit(*given)
        error = sum((out - target[rows]).pow(2).sum(1).mean() for out, target in zip(outs, wanted, strict=True))
        penalty = sum((1 - (m.soft_rounding() * 2 - 1).abs().pow(beta)).sum() for m in weights)
        unit.zero_grad()
        (error + weight * penalty).backward()
        rounding.step()
        if grids is not None and decay is not None:
            grids.step()
            decay.step()

    return step
