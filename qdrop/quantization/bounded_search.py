"""The range with the least rounding error by SciPy's bounded search (Brent, 1973), as published for detectors.

It is continuous and looks at some twenty widths; where the error has several valleys it ends in one of them.
"""

from collections.abc import Callable, Iterator

import torch
from scipy.optimize import OptimizeResult, minimize_scalar

from qdrop.quantization.range_search import Points, Range, rounding_error

Ends = tuple[float, float]


def bounded_search(points: Points, qmin: int, qmax: int, symmetric: bool) -> Range:
    """Range with the least error: of its width alone, or with values on both sides of zero, of width and shift.

    Args:
        points: Values `[C, n]`; one row is searched after the other.
        qmin: Smallest integer.
        qmax: Largest integer.
        symmetric: Zero point fixed at 0.

    Returns:
        Lower and upper ends `[C]`, `[C]`.
    """
    one_sided = bool((points.lo >= 0).all() or (points.hi <= 0).all())  # judged on the whole tensor

    def search(row: Points) -> Ends:
        def error(lo: float, hi: float) -> float:
            low, high = (row.values.new_tensor([[end]]) for end in (lo, hi))
            return float(rounding_error(row, low, high, qmin, qmax, symmetric))

        lo, hi = float(row.lo), float(row.hi)
        if lo == hi:
            return lo, hi
        if symmetric:
            lo, hi = min(lo, -hi), max(hi, -lo)
        return _by_width(error, lo, hi) if symmetric or one_sided else _by_width_and_shift(error, lo, hi, qmin, qmax)

    found = torch.tensor([search(row) for row in _rows(points)], dtype=torch.float64, device=points.values.device)
    low, high = found.float().unbind(1)
    return low, high


def _by_width(error: Callable[[float, float], float], lo: float, hi: float) -> Ends:
    """Ends in the proportion of `lo` and `hi`."""
    width = max(hi, -lo)
    share = _least(lambda w: error(lo * w / width, hi * w / width), _smallest(width), width).x / width
    return lo * share, hi * share


def _by_width_and_shift(error: Callable[[float, float], float], lo: float, hi: float, qmin: int, qmax: int) -> Ends:
    """For each width the best shift, which is a search of its own."""

    def shifted(width: float) -> OptimizeResult:
        step = width / (qmax - qmin)
        return _least(lambda shift: error(-shift, width - shift), step * qmin, step * qmax)

    width = _least(lambda w: shifted(w).fun, _smallest(hi - lo), hi - lo).x
    shift = shifted(width).x
    return max(-shift, lo), min(width - shift, hi)


def _smallest(width: float) -> float:
    """The smallest width that is looked at."""
    return min(0.1, 0.01 * width)


def _least(function: Callable[[float], float], low: float, high: float) -> OptimizeResult:
    return minimize_scalar(function, bounds=(low, high), method="bounded")


def _rows(points: Points) -> Iterator[Points]:
    for i in range(len(points.values)):
        row = slice(i, i + 1)
        rest = (None if v is None else v[row] for v in (points.counts, points.exact_lo, points.exact_hi))
        yield Points(points.values[row], *rest)
