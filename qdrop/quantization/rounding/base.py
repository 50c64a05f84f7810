"""What every rounding is to the quantizer that holds it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qdrop.quantization.drop import Mask
from qdrop.quantization.spec import QuantizerSpec


class Rounding(nn.Module, ABC):
    """From values to values on a grid. Its parameters are what it learns.

    Scale and zero point are given so that they broadcast along the channels of the values; integers are those of the
    spec, `qmin` to `qmax`.

    Args:
        spec: The quantizer that holds it.
    """

    def __init__(self, spec: QuantizerSpec) -> None:
        super().__init__()
        self.qmin, self.qmax = spec.integers

    @abstractmethod
    def forward(self, x: Tensor, scale: Tensor, zero_point: Tensor, keep: Mask | None) -> Tensor:
        """`x`, any shape, on the grid where `keep` (its shape; None: everywhere) says so; differentiable."""

    def prepare(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        """Start at the nearest integers of a weight, once its grid is known."""

    @contextmanager
    def learning(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> Iterator[None]:
        """Inside: soft."""
        yield

    def harden(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> float:
        """Make what was learned final; the share of the weight's elements, 0 to 1, not at the nearest integer."""
        return 0.0

    def regularizer(self, beta: Tensor) -> Tensor | None:
        """A scalar that pushes towards integers, with an exponent that falls while learning; None: no such term."""
        return None


class HeldRounding(Rounding):
    """Holds the integers of a weight, as steps above `qmin`, beside the weight itself, which is never touched.

    They are the nearest ones after :meth:`prepare`, and those that were learned in the end.
    """

    levels: Tensor

    def __init__(self, spec: QuantizerSpec) -> None:
        super().__init__(spec)
        self.register_buffer("levels", torch.zeros(spec.shape, dtype=torch.uint8))

    def forward(self, x: Tensor, scale: Tensor, zero_point: Tensor, keep: Mask | None) -> Tensor:
        """The weight from its integers; `keep` is not used."""
        return (self.levels + (self.qmin - zero_point)) * scale

    @torch.no_grad()
    def prepare(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        """See :meth:`Rounding.prepare`."""
        self.hold(torch.round(weight / scale) + zero_point)

    def hold(self, integers: Tensor) -> float:
        """Take these integers, float and not yet clamped; the share of them, 0 to 1, that are others than before."""
        before = self.levels.clone()
        self.levels.copy_((integers.clamp(self.qmin, self.qmax) - self.qmin).to(torch.uint8))
        return float((self.levels != before).float().mean())


class LearnedRounding(HeldRounding):
    """Learns the integers on a grid; while `start` is set, rounding is soft."""

    start: Tensor | None
    """While learning, what :meth:`begin` gave; a buffer, so that it is an argument of compiled code."""

    def __init__(self, spec: QuantizerSpec) -> None:
        super().__init__(spec)
        self.register_buffer("start", None, persistent=False)

    @abstractmethod
    def begin(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """What :meth:`soft` and :meth:`hard` need of the weight, which is worked out once: float, its shape."""

    @abstractmethod
    def soft(self, start: Tensor) -> Tensor:
        """The integers while they are learned: float, `qmin` to `qmax`, differentiable, shape of the weight."""

    @abstractmethod
    def hard(self, start: Tensor) -> Tensor:
        """The integers that were learned: float, not clamped, shape of the weight."""

    def forward(self, x: Tensor, scale: Tensor, zero_point: Tensor, keep: Mask | None) -> Tensor:
        """The weight from its integers, or, while learning, from the soft ones; `keep` is not used."""
        if self.start is None:
            return super().forward(x, scale, zero_point, keep)
        return scale * (self.soft(self.start) - zero_point)

    @contextmanager
    def learning(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> Iterator[None]:
        """See :meth:`Rounding.learning`."""
        before = self.start
        with torch.no_grad():
            self.start = self.begin(weight, scale, zero_point)
        try:
            yield
        finally:
            self.start = before

    @torch.no_grad()
    def harden(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> float:
        """See :meth:`Rounding.harden`; where the scale was learned too, while still learning."""
        return self.hold(self.hard(self.begin(weight, scale, zero_point) if self.start is None else self.start))
