"""The quantizer modules: one template `forward`, a rounding, and three ways to learn a grid."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from qdrop.quantization.affine import MIN_SCALE, along_channels, scale_from_range
from qdrop.quantization.drop import Drop, Mask
from qdrop.quantization.observer import Observer
from qdrop.quantization.rounding import Rounding
from qdrop.quantization.rounding.adaround import AdaRound
from qdrop.quantization.rounding.flexround import FlexRound
from qdrop.quantization.rounding.nearest import Nearest
from qdrop.quantization.spec import Group, Kind, QuantizerSpec
from qdrop.registry import OBSERVERS, QUANTIZERS


class FakeQuantize(nn.Module):
    """A quantizer: passes its input until it is switched on, then rounds it to its grid.

    State is explicit and set by the context managers of :mod:`qdrop.quantization.state`: `observer` (watch
    the input), `active` (round it), `drop` (leave part of it unrounded).

    Args:
        spec: What and how to quantize.
        rounding: How values become integers; anything but :class:`Nearest` is for weights.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: QuantizerSpec, rounding: Callable[[QuantizerSpec], Rounding] = Nearest) -> None:
        super().__init__()
        self.spec = spec
        self.rounding = rounding(spec)
        self.qmin, self.qmax = spec.integers
        self.register_buffer("scale", torch.ones(spec.channels))
        self.register_buffer("zero_point", torch.zeros(spec.channels))
        self.observer: Observer | None = None
        self.active = False
        self.drop: Drop | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Round `x`, any shape, as far as the state says so."""
        if self.observer is not None:
            self.observer.observe(x)
        if not self.active:
            return x
        keep = None if self.drop is None or self.drop.keep_prob == 1 else self.drop.mask(x)
        return self.quantize(x, keep)

    def quantize(self, x: Tensor, keep: Mask | None) -> Tensor:
        """`x` on the grid, where `keep` (shape of `x`; None: everywhere) says so."""
        return self.rounding(x, *self.grid_along(x), keep)

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point `[C]` to round `x` with, with the gradients the quantizer learns by."""
        return self.scale, self.zero_point

    def grid_along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`grid`, to broadcast along the channels of `x`."""
        scale, zero_point = (along_channels(v, x, self.spec.ch_axis) for v in self.grid(x))
        return scale, zero_point

    def new_observer(self) -> Observer:
        """A fresh observer for this quantizer's range."""
        return OBSERVERS[self.spec.observer](self.spec.bit, self.spec.symmetric, self.spec.ch_axis)

    @torch.no_grad()
    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        """Cover the real range `[lo, hi]`, `[C]` each."""
        scale, zero_point = scale_from_range(lo, hi, self.qmin, self.qmax, self.spec.symmetric)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def fit(self, weight: Tensor) -> None:
        """Set the range from a weight, and its integers to the nearest."""
        observer = self.new_observer()
        observer.observe(weight)
        self.set_range(*observer.range())
        self.prepare(weight)

    def prepare(self, weight: Tensor) -> None:
        """Set a weight's integers to the nearest on the grid as it is."""
        self.rounding.prepare(weight, *self.grid_along(weight))

    def learning(self, weight: Tensor) -> AbstractContextManager[None]:
        """Inside: the rounding of a weight is soft."""
        return self.rounding.learning(weight, *self.grid_along(weight))

    def harden(self, weight: Tensor) -> float:
        """Make the rounding learned for a weight final; the share of its elements, 0 to 1, not at the nearest."""
        return self.rounding.harden(weight, *self.grid_along(weight))

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Tensor:
        """A weight's integers, as steps above the smallest one, uint8, in its shape.

        They are read off the rounded weight, so they are the same thing for every kind of quantizer.

        Raises:
            ValueError: If integers, scale and zero point do not give the rounded weight back, bit for bit.
        """
        rounded = self.quantize(weight, None)
        grid = (self.scale, self.zero_point.round())
        scale, zero_point = (along_channels(v, rounded, self.spec.ch_axis) for v in grid)
        steps = (torch.round(rounded / scale) + zero_point - self.qmin).to(torch.uint8)
        if not torch.equal((steps + (self.qmin - zero_point)) * scale, rounded):
            raise ValueError(f"{self.spec.name}: the weight is not on its grid; calibrate the network first")
        return steps

    def param_groups(self) -> dict[Group, list[nn.Parameter]]:
        """What reconstruction can learn, by what it is: each group has a learning rate of its own."""
        return {Group.ROUNDING: list(self.rounding.parameters())}

    def learns(self) -> bool:
        """Whether there is anything."""
        return any(self.param_groups().values())

    def constrain(self) -> None:
        """Bring learned parameters back to where they mean something, after a step of an optimizer."""

    def get_extra_state(self) -> Tensor:
        """Part of the state: bits, and 1 if symmetric, else 0. Scale and integers of other ones mean other values."""
        return torch.tensor([self.spec.bit, int(self.spec.symmetric)])

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to set: :meth:`_load_from_state_dict` has compared it."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *found: list[str]
    ) -> None:
        """As for any module, but what is of other bits is an error and nothing of it is loaded."""
        own, told = self.get_extra_state(), state_dict.get(f"{prefix}_extra_state")
        if told is None or (isinstance(told, Tensor) and torch.equal(told.cpu(), own)):
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, *found)
            return
        *_, errors = found
        errors.append(
            f"{self.spec.name}: the state is that of a quantizer with [bit, symmetric] = {told.tolist()}, and this one"
            f" has {own.tolist()}; load it into a network that was quantized with the same settings"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As for any module, but for what would change the type of the scale."""
        check_type(self.scale, fn)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"bit={self.spec.bit}, symmetric={self.spec.symmetric}, ch_axis={self.spec.ch_axis}"


class FixedFakeQuantize(FakeQuantize):
    """A grid that stays where calibration put it."""


class LSQFakeQuantize(FakeQuantize):
    """A grid whose scale is learned (Esser et al., *Learned Step Size Quantization*, ICLR 2020)."""

    def __init__(self, spec: QuantizerSpec, rounding: Callable[[QuantizerSpec], Rounding] = Nearest) -> None:
        super().__init__(spec, rounding)
        del self.scale
        self.scale = nn.Parameter(torch.ones(spec.channels))

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale with its gradient multiplied by `1/sqrt(numel * qmax)` (LSQ, section 2.2)."""
        if not torch.is_grad_enabled():  # so that a graph of the forward holds no trace of it
            return self.scale, self.zero_point
        return _scale_gradient(self.scale, self._gradient_factor(x)), self.zero_point

    def _gradient_factor(self, x: Tensor) -> float:
        return float(max(x.numel(), 1) / self.spec.channels * self.qmax) ** -0.5

    def param_groups(self) -> dict[Group, list[nn.Parameter]]:
        """The scale too."""
        group = Group.WEIGHT_SCALE if self.spec.kind is Kind.WEIGHT else Group.ACTIVATION_SCALE
        return super().param_groups() | {group: [cast(nn.Parameter, self.scale)]}

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the scale positive."""
        self.scale.abs_().clamp_(min=MIN_SCALE)


class LSQPlusFakeQuantize(LSQFakeQuantize):
    """A grid whose scale and zero point are learned (Bhalgat et al., *LSQ+*, CVPR workshops 2020).

    Both learn at `recon.scale_lr`; the zero point counts in steps, so that at the published 4e-5 it hardly moves.
    """

    def __init__(self, spec: QuantizerSpec, rounding: Callable[[QuantizerSpec], Rounding] = Nearest) -> None:
        super().__init__(spec, rounding)
        del self.zero_point
        self.zero_point = nn.Parameter(torch.zeros(spec.channels))

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both with scaled gradients; the zero point is rounded on the way, straight-through."""
        if not torch.is_grad_enabled():
            return self.scale, self.zero_point.round()
        factor = self._gradient_factor(x)
        zero_point = _scale_gradient(self.zero_point, factor)
        return _scale_gradient(self.scale, factor), zero_point + (zero_point.round() - zero_point).detach()

    def param_groups(self) -> dict[Group, list[nn.Parameter]]:
        """The zero point too; a symmetric grid keeps it at 0."""
        learned = [] if self.spec.symmetric else [cast(nn.Parameter, self.zero_point)]
        return super().param_groups() | {Group.ZERO_POINT: learned}

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the scale positive and the zero point within the integers."""
        super().constrain()
        self.zero_point.clamp_(self.qmin, self.qmax)


def check_type(scale: Tensor, fn: Callable[[Tensor], Tensor]) -> None:
    """Refuse what changes the type of a quantizer's scale, as `.half()` and `.double()` do.

    Raises:
        TypeError: Says the type, and what to do.
    """
    with torch.no_grad():
        dtype = fn(scale).dtype
    if dtype != scale.dtype:
        raise TypeError(
            f"a quantized network computes in {scale.dtype}, in which its weights are on their grids, and cannot be"
            f" turned into {dtype}; convert the images instead, or export it"
        )


def _scale_gradient(value: Tensor, factor: float) -> Tensor:
    """`value`, exactly, with its gradient multiplied by `factor`."""
    scaled = value * factor
    return value.detach() + (scaled - scaled.detach())


AdaRoundFakeQuantize = partial(FixedFakeQuantize, rounding=AdaRound)
"""A fixed grid, on which a weight learns whether each of its elements rounds down or up (AdaRound, ICML 2020)."""

AdaRoundLSQFakeQuantize = partial(LSQFakeQuantize, rounding=AdaRound)
"""The same on a grid whose scale is learned too (Jeon et al., *GENIE*, CVPR 2023, section 3.2).

`s * (clamp(floor(w/s0) + h(a) + z) - z)`: the integers start from the scale `s0` of calibration and do not follow `s`.
"""

FlexRoundFakeQuantize = partial(LSQFakeQuantize, rounding=FlexRound)
"""A grid whose scale is learned, and what each weight is divided by before it is rounded (FlexRound, ICML 2023)."""


def build_quantizer(spec: QuantizerSpec) -> FakeQuantize:
    """The quantizer module that `spec` describes.

    Raises:
        ValueError: For a learned rounding of an activation: it belongs to the elements of a weight.
    """
    quantizer: FakeQuantize = QUANTIZERS[spec.quantizer](spec)
    if spec.kind is Kind.ACTIVATION and not isinstance(quantizer.rounding, Nearest):
        raise ValueError(f"{spec.name}: {spec.quantizer} rounds weights; use LSQFakeQuantize for activations")
    return quantizer
