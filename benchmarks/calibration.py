"""Calibration: the MSE range search against trying every candidate on the full tensor.

python -m benchmarks.calibration --threads 1        # recorded
python -m benchmarks.calibration --quick

A candidate is tried with torch's own fused fake quantization, so that the comparison is with a search that is
exhaustive but not slow otherwise. Its time is that of a few candidates times their number. The least loss over
all candidates is found exactly for some channels of the weight; for an activation all candidates are tried on a
sample with every outlier, and the best few of them on everything.
"""

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import main
from benchmarks.plots import axes, bars
from benchmarks.records import Outcome, Table
from benchmarks.timing import interleaved
from qdrop.quantization.observer import MSEObserver
from qdrop.quantization.range_search import NORM, WIDTHS, Points, rounding_error

BITS = (2, 4, 8)
TRIED = 2
"""Candidates whose time stands for all."""
SAMPLE = 1 << 16
"""Values of an activation on which all candidates are compared."""
OUTLIERS = 2000
"""How many of its smallest values, and how many of its largest, are all in the sample."""
FINALISTS = 8
"""The best of them, compared on everything."""
CHANNELS = 32
"""Channels of the weight on which all candidates are compared."""


@dataclass(frozen=True)
class Case:
    """A tensor to find ranges for."""

    name: str
    tensor: Tensor
    ch_axis: int
    one_sided: bool

    @property
    def rows(self) -> Tensor:
        """`[C, n]`: a row per range."""
        return self.tensor.reshape(1, -1) if self.ch_axis == -1 else self.tensor.flatten(1)

    @cached_property
    def sample(self) -> Points:
        """Of a single row, some values and all outliers, each with how many it stands for."""
        values = self.rows.sort(1).values
        stride = max(1, values.shape[1] // SAMPLE)
        body = values[:, OUTLIERS:-OUTLIERS:stride]
        ends = values[:, :OUTLIERS], values[:, -OUTLIERS:]
        counts = torch.cat([torch.ones_like(ends[0]), torch.full_like(body, stride), torch.ones_like(ends[1])], 1)
        return Points(torch.cat([ends[0], body, ends[1]], 1), counts)

    def candidates(self, bit: int) -> int:
        """How many ranges the published method tries."""
        return WIDTHS * (1 if self.one_sided else 2**bit)


def cases(quick: bool, device: torch.device) -> list[Case]:
    """An activation behind a ReLU, a weight, and if there is time an activation of both signs."""
    generator = torch.Generator().manual_seed(0)
    signed = torch.randn(256, 64, 56, 56, generator=generator).to(device)
    weight = torch.randn(512, 512, 3, 3, generator=generator).to(device)
    some = [
        Case("activation after ReLU", signed.clamp(min=0), -1, one_sided=True),
        Case("weight", weight, 0, one_sided=False),
    ]
    return some if quick else [*some, Case("activation of both signs", signed, -1, one_sided=False)]


def search(case: Case, bit: int) -> tuple[Tensor, Tensor]:
    """Our range `[C]`, `[C]`."""
    observer = MSEObserver(bit, False, case.ch_axis)
    observer.observe(case.tensor)
    return observer.range()


def candidate(case: Case, bit: int) -> Callable[[], Tensor]:
    """Tries one range for each channel: the error of the full tensor."""
    rows, top = case.rows, 2**bit - 1
    scale = torch.full((len(rows),), 0.1, device=rows.device)
    zero_point = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)

    def run() -> Tensor:
        if len(rows) == 1:
            near = torch.fake_quantize_per_tensor_affine(rows, scale[0], zero_point[0], 0, top)
        else:
            near = torch.fake_quantize_per_channel_affine(rows, scale, zero_point, 0, 0, top)
        return near.sub_(rows).abs_().pow_(NORM).mean(1)

    return run


def all_ranges(case: Case, bit: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Every candidate's ends `[C, K]`, `[C, K]` for `rows` `[C, n]`."""
    lo, hi = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    width = torch.arange(1, WIDTHS + 1, device=rows.device) / WIDTHS
    if case.one_sided:
        return lo * width, hi * width
    top = 2**bit - 1
    width, zero_point = torch.cartesian_prod(width, torch.arange(top + 1.0, device=rows.device)).unbind(1)
    low = -zero_point * (hi - lo) * width / top
    return low, low + (hi - lo) * width


def excess(case: Case, bit: int, found: tuple[Tensor, Tensor]) -> float:
    """By how many percent the loss of our range is above the least of all candidates; the worst channel's."""
    top, rows = 2**bit - 1, case.rows[:CHANNELS]
    low, high = all_ranges(case, bit, rows)
    if len(rows) == 1:
        best = rounding_error(case.sample, low, high, 0, top, False).topk(FINALISTS, largest=False).indices
        low, high = low.gather(1, best), high.gather(1, best)
    low, high = (torch.cat([ends, ours[: len(rows), None]], 1) for ends, ours in zip((low, high), found, strict=True))
    errors = rounding_error(Points(rows), low, high, 0, top, False)
    return float((errors[:, -1] / errors[:, :-1].amin(1) - 1).max()) * 100


@dataclass(frozen=True)
class Finding:
    """What was measured of one tensor at one width."""

    case: Case
    bit: int
    exhaustive: float
    """Seconds."""
    seconds: float
    """Seconds of ours."""
    speedup: float
    excess: float
    """Percent."""

    @property
    def figures(self) -> dict[str, float]:
        """Under plain names."""
        name = f"{self.case.name.replace(' ', '_').lower()}.{self.bit}_bit"
        return {
            f"{name}.seconds": self.seconds,
            f"{name}.exhaustive_seconds": self.exhaustive,
            f"{name}.speedup": self.speedup,
            f"{name}.loss_excess_percent": self.excess,
        }

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        candidates, shape = self.case.candidates(self.bit), "x".join(map(str, self.case.tensor.shape))
        numbers = (f"{candidates:,}", f"{self.exhaustive:,.1f}", f"{self.seconds:.2f}", f"{self.speedup:,.0f}")
        return (self.case.name, shape, str(self.bit), *numbers, f"{self.excess:.3f}")


def find(case: Case, bit: int, rounds: int) -> Finding:
    """Measure one tensor at one width."""
    tried = candidate(case, bit)

    def few() -> None:
        for _ in range(TRIED):
            tried()

    timings = interleaved({"ours": lambda: search(case, bit), "few": few}, rounds, case.tensor.device)
    times = case.candidates(bit) / TRIED
    return Finding(
        case,
        bit,
        exhaustive=timings.median("few") * times,
        seconds=timings.median("ours"),
        speedup=timings.ratio("few", "ours") * times,
        excess=excess(case, bit, search(case, bit)),
    )


def measure(args: Namespace) -> Outcome:
    """Time and loss of every case at every width."""
    rounds = 2 if args.quick else 5
    findings = [find(case, bit, rounds) for case in cases(args.quick, args.device) for bit in BITS]
    table = Table(
        f"Seconds of the exhaustive search: those of {TRIED} candidates times their number. Target: at least 50 times"
        " faster, loss within 0.5%.",
        ("tensor", "shape", "bits", "candidates", "exhaustive, s", "ours, s", "times faster", "loss above least, %"),
        tuple(finding.cells for finding in findings),
    )
    figures = {name: value for finding in findings for name, value in finding.figures.items()}
    return Outcome(figures, (table,), draw(findings))


def draw(findings: list[Finding]) -> Figure:
    """Times faster, for each tensor and width."""
    plot, ax = axes("MSE range search: how many times faster than trying every candidate", "", "times faster")
    ax.set_yscale("log")
    names = dict.fromkeys(finding.case.name for finding in findings)
    speedups = {name: [f.speedup for f in findings if f.case.name == name] for name in names}
    bars(ax, [f"{bit} bits" for bit in BITS], speedups, "{:,.0f}")
    ax.set_ylim(bottom=10)
    ax.axhline(50, color="#333333", linewidth=1, linestyle="--", label="target: 50")
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    return plot


if __name__ == "__main__":
    sys.exit(main(__doc__, "calibration", measure))
