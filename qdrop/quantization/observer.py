"""Ranges from data: what part of the real line a quantizer should cover.

An observer is shown tensors and then asked once for a range. Per tensor it keeps a histogram, so that a
search costs the same for ten values as for a thousand million; per channel it keeps the values (weights,
which are seen once). Showing it a tensor never moves data to the host.
"""

from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from qdrop.quantization.affine import integer_range
from qdrop.quantization.range_search import Points, golden_search, grid_search

BINS = 32768
"""Histogram bins: over a hundred to a step of the widest quantizer (8 bits)."""

PART = 1 << 22
"""Values binned at a time: bounds the memory of their bin numbers."""

T = TypeVar("T")
Range = tuple[Tensor, Tensor]


class Observer(ABC):
    """Watches the tensors a quantizer will see.

    Args:
        bit: Width of the quantizer, 2 to 8.
        symmetric: Whether its integers are signed around zero.
        ch_axis: Axis with a range per index; -1: one range for the tensor.
    """

    def __init__(self, bit: int, symmetric: bool, ch_axis: int) -> None:
        self.qmin, self.qmax = integer_range(bit, symmetric)
        self.symmetric = symmetric
        self.ch_axis = ch_axis

    def rows(self, x: Tensor) -> Tensor:
        """`x` as `[C, n]`: one row per range."""
        x = x.detach()
        return x.reshape(1, -1) if self.ch_axis == -1 else x.transpose(0, self.ch_axis).flatten(1)

    @abstractmethod
    def observe(self, x: Tensor) -> None:
        """Take in one tensor of any shape (per channel: with axis `ch_axis`)."""

    @abstractmethod
    def range(self) -> Range:
        """Lower and upper ends `[C]` of what was observed.

        Raises:
            ValueError: If nothing was observed.
        """


class MinMaxObserver(Observer):
    """The smallest and the largest value ever seen."""

    def __init__(self, bit: int, symmetric: bool, ch_axis: int) -> None:
        super().__init__(bit, symmetric, ch_axis)
        self._seen: Range | None = None

    def observe(self, x: Tensor) -> None:
        """See :meth:`Observer.observe`."""
        lo, hi = torch.aminmax(self.rows(x), dim=1)
        if self._seen is not None:
            lo, hi = torch.minimum(lo, self._seen[0]), torch.maximum(hi, self._seen[1])
        self._seen = lo, hi

    def range(self) -> Range:
        """See :meth:`Observer.range`."""
        return _observed(self._seen)


class MSEObserver(Observer):
    """The range with the least mean `abs(x_hat - x)^2.4` over everything seen, of a grid of candidates.

    See :func:`qdrop.quantization.range_search.grid_search` for the candidates (design of the published
    method: 100 widths, and every zero point where values lie on both sides of zero).
    """

    def __init__(self, bit: int, symmetric: bool, ch_axis: int) -> None:
        super().__init__(bit, symmetric, ch_axis)
        self._points: Points | None = None

    def observe(self, x: Tensor) -> None:
        """See :meth:`Observer.observe`."""
        rows = self.rows(x)
        if self.ch_axis == -1:
            self._points = _add_to_histogram(self._points, rows)
        else:
            kept = [] if self._points is None else [self._points.values]
            self._points = Points(torch.cat([*kept, rows], dim=1))

    def range(self) -> Range:
        """See :meth:`Observer.range`."""
        return self.search(_observed(self._points).without_empty())

    def search(self, points: Points) -> Range:
        """Best range `[C]`, `[C]` for the observed points."""
        return grid_search(points, self.qmin, self.qmax, self.symmetric)


class MSEFastObserver(MSEObserver):
    """As :class:`MSEObserver`, by golden-section search on each end of the range instead of a grid."""

    def search(self, points: Points) -> Range:
        """Best range `[C]`, `[C]` for the observed points."""
        return golden_search(points, self.qmin, self.qmax, self.symmetric)


class MSEBoundedObserver(MSEObserver):
    """As :class:`MSEObserver`, by SciPy's bounded search: the published method's for detectors."""

    def search(self, points: Points) -> Range:
        """Best range `[C]`, `[C]` for the observed points."""
        from qdrop.quantization.bounded_search import bounded_search  # SciPy is slow to import

        return bounded_search(points, self.qmin, self.qmax, self.symmetric)


class ClippingObserver(MSEObserver):
    """As :class:`MSEObserver`, with a smaller exponent: clips outliers sooner, for the sake of all other values.

    Not part of the published method. At 2.4 a few outliers can take a scale so wide that most values round to 0
    (the last blocks of some MobileNetV2 weights); at 1.5 they do not.
    """

    def search(self, points: Points) -> Range:
        """Best range `[C]`, `[C]` for the observed points."""
        return grid_search(points, self.qmin, self.qmax, self.symmetric, norm=1.5)


class _Averaged(Observer):
    """The mean of the ranges that another observer finds for each tensor on its own."""

    each: type[Observer]

    def __init__(self, bit: int, symmetric: bool, ch_axis: int) -> None:
        super().__init__(bit, symmetric, ch_axis)
        self._arguments = (bit, symmetric, ch_axis)
        self._observers: list[Observer] = []

    def observe(self, x: Tensor) -> None:
        """See :meth:`Observer.observe`."""
        observer = self.each(*self._arguments)
        observer.observe(x)
        self._observers.append(observer)

    def range(self) -> Range:
        """See :meth:`Observer.range`."""
        ranges = [observer.range() for observer in _observed(self._observers or None)]
        lo, hi = zip(*ranges, strict=True)
        return torch.stack(lo).mean(0), torch.stack(hi).mean(0)


class AvgMinMaxObserver(_Averaged):
    """The mean over tensors of their smallest and largest values."""

    each = MinMaxObserver


class AvgMSEObserver(_Averaged):
    """The mean over tensors of their :class:`MSEObserver` ranges."""

    each = MSEObserver


class AvgMSEFastObserver(_Averaged):
    """The mean over tensors of their :class:`MSEFastObserver` ranges."""

    each = MSEFastObserver


class AvgMSEBoundedObserver(_Averaged):
    """The mean over tensors of their :class:`MSEBoundedObserver` ranges."""

    each = MSEBoundedObserver


def _observed(state: T | None) -> T:
    if state is None:
        raise ValueError("this observer has seen no tensor; run calibration images through the model first")
    return state


def _add_to_histogram(seen: Points | None, row: Tensor) -> Points:
    """Histogram of `seen` and `row` `[1, n]` together, over a range that holds both and zero.

    Bins of the old histogram move to the new one as points at their centres. All on the device: the range
    is a tensor, never a number on the host.
    """
    lo, hi = (end.to(torch.float64) for end in torch.aminmax(row, dim=1))
    if seen is not None:
        lo, hi = torch.minimum(lo, seen.lo.double()), torch.maximum(hi, seen.hi.double())
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    width = ((hi - lo) / BINS).clamp(min=torch.finfo(torch.float32).tiny)
    counts = torch.zeros(1, BINS, dtype=torch.float64, device=row.device)

    def add(values: Tensor, weights: Tensor) -> None:
        bins = values.sub(lo.to(values.dtype)).div_(width.to(values.dtype)).long().clamp_(0, BINS - 1)
        counts.scatter_add_(1, bins, weights)

    one = torch.ones((), dtype=torch.float64, device=row.device)
    for part in row.split(PART, dim=1):
        add(part, one.expand_as(part))
    if seen is not None and seen.counts is not None:
        add(seen.values.double(), seen.counts)
    centres = lo + width * (torch.arange(BINS, dtype=torch.float64, device=row.device) + 0.5)
    return Points(centres.float()[None], counts, lo.float(), hi.float())
