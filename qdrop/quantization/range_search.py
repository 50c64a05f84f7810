"""Search for the range with the least rounding error, on values or on a histogram of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from qdrop.quantization.affine import scale_from_range

NORM = 2.4
"""Exponent of the error, as in the published method; between least squares and robustness to clipping."""
WIDTHS = 100
"""Candidate widths: 1/100 of the full range to all of it."""
ROUGH = 256
"""Bins that stand for a row on the coarsest grid."""
FINE = 64
"""Bins for each step of the quantizer on the finer ones."""
CROWD = 4
"""Values in a bin, on average, from which on bins are worth their making."""
VALLEYS = 4
"""Candidates that each level of the search looks around."""
EXHAUSTIVE = 1 << 26
"""Values times candidates up to which short rows, whose error is rugged, are searched without levels."""
CHUNK = 1 << 20
"""Values worked on at a time, so that a step of the search stays in the processor's cache."""

Range = tuple[Tensor, Tensor]
Error = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Points:
    """Values `[C, n]` to be covered, optionally with a count each (a histogram) and their true ends `[C]`."""

    values: Tensor
    counts: Tensor | None = None
    exact_lo: Tensor | None = None
    exact_hi: Tensor | None = None

    @property
    def lo(self) -> Tensor:
        """Smallest value of each row `[C]`, not above 0."""
        lo = self.values.amin(1) if self.exact_lo is None else self.exact_lo
        return lo.clamp(max=0)

    @property
    def hi(self) -> Tensor:
        """Largest value of each row `[C]`, not below 0."""
        hi = self.values.amax(1) if self.exact_hi is None else self.exact_hi
        return hi.clamp(min=0)

    def without_empty(self) -> "Points":
        """The same points without bins that nothing fell into (histograms have one row)."""
        if self.counts is None:
            return self
        full = self.counts[0] > 0
        return Points(self.values[:, full], self.counts[:, full], self.exact_lo, self.exact_hi)

    def summary(self, bins: int) -> "Points":
        """At most so many points with nearly the same error, where there are many more: means of bins `[C, bins]`.

        Bins are of equal width in the square root of the values, so that a far value does not blur the others.
        """
        rows, n = self.values.shape
        if self.counts is not None or n < CROWD * bins:
            return self
        root = self.values.abs().sqrt_().copysign_(self.values)
        lo, hi = torch.aminmax(root, dim=1, keepdim=True)
        per_unit = (bins / (hi - lo)).nan_to_num_(posinf=0)  # all values of a row may be one, as in a dead channel
        which = root.sub_(lo).mul_(per_unit).long().clamp_(max=bins - 1)
        which += torch.arange(0, rows * bins, bins, device=which.device)[:, None]
        counts = torch.bincount(which.view(-1), minlength=rows * bins)
        sums = torch.bincount(which.view(-1), self.values.reshape(-1), rows * bins)
        means = (sums / counts.clamp(min=1)).to(self.values.dtype)
        return Points(means.view(rows, bins), counts.view(rows, bins), self.lo, self.hi)


def rounding_error(
    points: Points, lo: Tensor, hi: Tensor, qmin: int, qmax: int, symmetric: bool, norm: float = NORM
) -> Tensor:
    """Mean `abs(x_hat - x)^norm` of each row for each candidate range.

    Args:
        points: Values `[C, n]`.
        lo: Lower ends `[C, K]`, K candidates.
        hi: Upper ends `[C, K]`.
        qmin: Smallest integer.
        qmax: Largest integer.
        symmetric: Zero point fixed at 0.
        norm: Exponent of the error.

    Returns:
        Errors `[C, K]`.
    """
    scale, zero_point = scale_from_range(lo, hi, qmin, qmax, symmetric)
    errors = torch.empty_like(scale, dtype=torch.float64)  # the power of a large scale leaves 32 bits
    rows, n = points.values.shape
    some_rows = max(1, CHUNK // max(1, n))
    step = max(1, CHUNK // max(1, n * min(rows, some_rows)))
    for row in range(0, rows, some_rows):
        part = slice(row, row + some_rows)
        values = points.values[part, None]
        counts = None if points.counts is None else points.counts[part, None]
        total = n if counts is None else counts.sum(2)
        for start in range(0, scale.shape[1], step):
            some = slice(start, start + step)
            s, z = scale[part, some, None], zero_point[part, some, None]
            steps = values / s
            rounded = torch.round(steps).add_(z).clamp_(qmin, qmax).sub_(z)
            error = rounded.sub_(steps).abs_().log2_().mul_(norm).exp2_()  # a power, in half of pow's time
            if counts is not None:
                error = error * counts
            errors[part, some] = error.sum(2) / total * s[..., 0].double() ** norm
    return errors


def grid_search(points: Points, qmin: int, qmax: int, symmetric: bool, norm: float = NORM) -> Range:
    """Best of the candidate ranges of the published method, found from coarse to fine.

    Symmetric, or with all values of the tensor on one side of zero, a candidate is `i/100` of the larger
    end. Otherwise it is a width, `i/100` of the full range, with each of the zero points `qmin..qmax`.
    The error of long rows is smooth at the scale of the coarse grid, so that zooming in finds the best
    candidate or one within a fraction of a percent of it; that of short rows is not, and all are tried.

    Args:
        points: Values `[C, n]`.
        qmin: Smallest integer.
        qmax: Largest integer.
        symmetric: Zero point fixed at 0.
        norm: Exponent of the error.

    Returns:
        Lower and upper ends `[C]`, `[C]`.
    """
    candidate, zero_points = _candidates(points, qmin, qmax, symmetric)

    def error(on: Points, width: Tensor, zero_point: Tensor) -> Tensor:
        return rounding_error(on, *candidate(width / WIDTHS, zero_point), qmin, qmax, symmetric, norm)

    rough, bins = points.summary(ROUGH), FINE * (qmax - qmin + 1)
    fine = rough if bins <= ROUGH else points.summary(bins)
    levels = _levels(points, len(zero_points))
    rows, device = len(points.values), points.values.device
    last = _zoom(partial(error, rough), partial(error, fine), levels, rows, zero_points, device)
    best = last if last.shape[1] == 1 else _least(error(points, last[..., 0], last[..., 1]), last, 1)
    low, high = candidate(best[..., 0] / WIDTHS, best[..., 1])
    return low[:, 0], high[:, 0]


def _candidates(
    points: Points, qmin: int, qmax: int, symmetric: bool
) -> tuple[Callable[[Tensor, Tensor], Range], list[int]]:
    """Ranges by width, a fraction of the widest, and zero point (both `[C, K]`); and the zero points there are."""
    lo, hi = points.lo[:, None], points.hi[:, None]
    if symmetric:
        hi = torch.maximum(-lo, hi)
        lo = -hi
    if symmetric or (lo >= 0).all() or (hi <= 0).all():  # judged on the whole tensor
        return (lambda width, _: (lo * width, hi * width)), [0]

    def two_sided(width: Tensor, zero_point: Tensor) -> Range:
        span = (hi - lo) * width
        low = -(zero_point - qmin) * span / (qmax - qmin)
        return low, low + span

    return two_sided, list(range(qmin, qmax + 1))


def _levels(points: Points, zero_points: int) -> list[tuple[int, int]]:
    """Steps in width and zero point of each level of the search, the last one 1 and 1."""
    levels = [(4, max(1, zero_points // 16)), (2, max(1, zero_points // 64)), (1, 1)]
    work = points.values.numel() * WIDTHS * zero_points
    return levels[-1:] if points.values.shape[1] < CROWD * ROUGH and work <= EXHAUSTIVE else levels


def _zoom(
    rough: Error,
    error: Error,
    strides: list[tuple[int, int]],
    rows: int,
    zero_points: list[int],
    device: torch.device,
) -> Tensor:
    """Minimise `error(width [C, K], zero_point [C, K]) -> [C, K]` over the grid, from coarse to fine.

    `rough` is a cheaper estimate of the error, good enough to find the valleys; `strides` those of `_levels`.

    Returns:
        The best few widths and zero points, best first `[C, VALLEYS, 2]`.
    """
    first, last = zero_points[0], zero_points[-1]
    width = torch.arange(strides[0][0], WIDTHS + 1, strides[0][0], device=device)
    zero_point = torch.arange(first, last + 1, strides[0][1], device=device)
    grid = torch.cartesian_prod(width, zero_point).expand(rows, -1, 2)
    best = _valleys(rough, grid, len(zero_point))
    for (coarse_w, coarse_z), (w, z) in pairwise(strides):
        offsets = torch.cartesian_prod(
            torch.arange(w - coarse_w, coarse_w, w, device=device),
            torch.arange(z - coarse_z, coarse_z, z, device=device),
        )
        grid = (best[:, :, None] + offsets).flatten(1, 2)
        # Candidates beyond an edge fold onto it: looked at twice, never chosen wrongly.
        grid = torch.stack([grid[..., 0].clamp(1, WIDTHS), grid[..., 1].clamp(first, last)], dim=2)
        best = _least(error(grid[..., 0], grid[..., 1]), grid, VALLEYS)
    return best


def _valleys(error: Error, grid: Tensor, zero_points: int) -> Tensor:
    """The best few zero points, each with its best width, of a full grid `[C, W * Z, 2]`: `[C, VALLEYS, 2]`.

    Each zero point has a valley of its own along the width; two neighbours in one valley would be one lead.
    """
    errors = error(grid[..., 0], grid[..., 1]).view(len(grid), -1, zero_points)
    least, row = errors.min(1)  # [C, Z]
    flat = row * zero_points + torch.arange(zero_points, device=grid.device)
    return _least(least, grid.gather(1, flat[..., None].expand(-1, -1, 2)), VALLEYS)


def _least(errors: Tensor, grid: Tensor, count: int) -> Tensor:
    """Of candidates `[C, K, 2]` with errors `[C, K]`, the `count` best ones, best first."""
    choice = errors.topk(min(count, errors.shape[1]), largest=False).indices
    return grid.gather(1, choice[..., None].expand(-1, -1, 2))


def golden_search(points: Points, qmin: int, qmax: int, symmetric: bool) -> Range:
    """Range with the least error by golden-section search for the width, for each of some 16 zero points.

    Fewer evaluations than the grid and widths in between its steps; it trusts that the error has one valley
    along the width of a zero point.

    Args:
        points: Values `[C, n]`.
        qmin: Smallest integer.
        qmax: Largest integer.
        symmetric: Zero point fixed at 0.

    Returns:
        Lower and upper ends `[C]`, `[C]`.
    """
    candidate, zero_points = _candidates(points, qmin, qmax, symmetric)
    some = torch.tensor(zero_points[:: max(1, len(zero_points) // 16)], device=points.values.device)
    zero_point = some.expand(len(points.values), -1)  # [C, Z]

    def error(width: Tensor) -> Tensor:
        return rounding_error(points, *candidate(width, zero_point), qmin, qmax, symmetric)

    width = _golden(error, torch.ones_like(zero_point, dtype=points.values.dtype))
    best = error(width).argmin(1, keepdim=True)
    low, high = candidate(width.gather(1, best), zero_point.gather(1, best))
    return low[:, 0], high[:, 0]


def _golden(error: Callable[[Tensor], Tensor], widest: Tensor, steps: int = 14) -> Tensor:
    """The `x` up to `widest`, any shape, with the least `error(x)` of that shape, each element on its own."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = widest / WIDTHS, widest
    for _ in range(steps):
        inner, outer = right - ratio * (right - left), left + ratio * (right - left)
        shrink = error(inner) < error(outer)
        left, right = torch.where(shrink, left, inner), torch.where(shrink, outer, right)
    return (left + right) / 2
