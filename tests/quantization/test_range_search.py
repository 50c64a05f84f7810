"""The zooming search against one that tries every candidate, written out here."""

import pytest
import torch

from qdrop.quantization.affine import fake_quantize, scale_from_range
from qdrop.quantization.range_search import Points, golden_search, grid_search, rounding_error

CASES = [  # bits, values in a row
    *((bit, n) for bit in (2, 3, 4) for n in (9, 27, 64, 144, 600, 1152)),
    *((8, n) for n in (9, 27, 147, 1152)),
]


def gaussian(rows, n, seed=0):
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(rows, n, seed=0):
    spread = torch.rand(rows, n, generator=torch.Generator().manual_seed(seed + 1))
    return gaussian(rows, n, seed) / spread.clamp(min=0.02).sqrt()


SHAPES = {"gaussian": gaussian, "heavy": heavy_tailed}


def loss(values, scale, zero_point, qmin, qmax):
    """Mean abs(x_hat - x)^2.4 of each row `[C, n]` for each candidate `[C, K]`."""
    s, z = scale[:, None], zero_point[:, None]
    levels = ((values[:, :, None] / s).round() + z).clamp(qmin, qmax)
    return ((levels - z) * s - values[:, :, None]).abs().pow(2.4).mean(1)


def of_range(lo, hi, qmin, qmax, symmetric):
    if symmetric:
        scale = torch.maximum(-lo, hi) / ((qmax - qmin) / 2)
        return scale, torch.zeros_like(scale)
    scale = (hi - lo) / (qmax - qmin)
    return scale, (qmin - (lo / scale).round()).clamp(qmin, qmax)


def range_loss(values, lo, hi, qmin, qmax, symmetric):
    grid = of_range(lo[:, None], hi[:, None], qmin, qmax, symmetric)
    return loss(values, *grid, qmin, qmax)[:, 0]


def exhaustive(values, qmin, qmax, symmetric=False):
    """Least loss of each row over all candidates of the published search."""
    lo, hi = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    one_sided = bool((values >= 0).all() or (values <= 0).all())
    best = torch.full_like(lo, torch.inf)
    for i in range(1, 101):
        if symmetric or one_sided:
            low, high = lo[:, None] * i / 100, hi[:, None] * i / 100
            if symmetric:
                high = torch.maximum(-low, high)
                low = -high
        else:
            width = (hi - lo)[:, None] * i / 100
            low = -(torch.arange(qmin, qmax + 1) - qmin) * width / (qmax - qmin)
            high = low + width
        candidates = loss(values, *of_range(low, high, qmin, qmax, symmetric), qmin, qmax)
        best = torch.minimum(best, candidates.amin(1))
    return best


def assert_as_good(values, found, qmin, qmax, symmetric=False, tolerance=1e-3):
    best = exhaustive(values, qmin, qmax, symmetric)
    ours = range_loss(values, *found, qmin, qmax, symmetric)
    assert (ours <= best * (1 + tolerance)).all(), (ours / best).max()
    assert (ours >= best * (1 - 1e-3)).all(), "a range that is no candidate"


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("bit", "n"), CASES)
def test_per_channel_weights(bit, n, kind):
    rows = max(4, min(48, 150_000 // (n * 2**bit)))
    values, qmax = SHAPES[kind](rows, n, seed=n), 2**bit - 1
    assert_as_good(values, grid_search(Points(values), 0, qmax, symmetric=False), 0, qmax)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bit", [2, 3, 4, 8])
def test_one_sided(bit, sign):
    values, qmax = sign * heavy_tailed(3, 3000).abs(), 2**bit - 1
    found = grid_search(Points(values), 0, qmax, symmetric=False)
    assert_as_good(values, found, 0, qmax)
    assert (found[0 if sign == 1 else 1] == 0).all()


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("bit", [2, 3, 4, 8])
def test_symmetric(bit, kind):
    values = SHAPES[kind](8, 300)
    qmin, qmax = -(2 ** (bit - 1)), 2 ** (bit - 1) - 1
    found = grid_search(Points(values), qmin, qmax, symmetric=True)
    assert_as_good(values, found, qmin, qmax, symmetric=True)
    assert torch.equal(found[0], -found[1])


def test_one_sidedness_is_judged_on_the_whole_tensor():
    """A channel without negative values still has its choice of zero points if another channel has some."""
    values = torch.stack([gaussian(1, 9)[0].abs(), gaussian(1, 9)[0]])
    assert_as_good(values, grid_search(Points(values), 0, 3, symmetric=False), 0, 3)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bit", [2, 4, 8])
def test_outliers(bit, symmetric):
    """At 8 bits one far value decides the range, in rows long enough to be summarised."""
    values = gaussian(6, 1500)
    values[:, 0] = torch.linspace(4, 40, 6)
    qmin, qmax = (-(2 ** (bit - 1)), 2 ** (bit - 1) - 1) if symmetric else (0, 2**bit - 1)
    assert_as_good(values, grid_search(Points(values), qmin, qmax, symmetric), qmin, qmax, symmetric)


def test_depthwise_layer():
    """Rows of nine values have a rugged error: a search that only zooms in missed some of these."""
    values = gaussian(400, 9, seed=5)
    assert_as_good(values, grid_search(Points(values), 0, 3, symmetric=False), 0, 3, tolerance=1e-5)


@pytest.mark.parametrize("bit", [2, 4, 8])
def test_symmetric_asymmetric_zero_rows(bit):
    """A row of zeros beside others gets a range of its own that is not NaN."""
    values = torch.cat([torch.zeros(1, 20), gaussian(1, 20)])
    lo, hi = grid_search(Points(values), 0, 2**bit - 1, symmetric=False)
    assert lo.isfinite().all() and hi.isfinite().all()
    assert (lo[0], hi[0]) == (0, 0)


def test_rounding_error():
    values = heavy_tailed(5, 70)
    lo, hi = -torch.rand(5, 11) - 0.1, torch.rand(5, 11) + 0.1
    expected = loss(values, *of_range(lo, hi, 0, 7, False), 0, 7)
    found = rounding_error(Points(values), lo, hi, 0, 7, False)
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("search", [grid_search, golden_search])
@pytest.mark.parametrize("factor", [2.0**20, 2.0**100])
def test_a_range_is_as_good_for_values_of_any_size(search, factor):
    """The power of a large scale once left 32 bits: all errors were infinite and any candidate the best."""
    values = heavy_tailed(3, 200)
    for some in (values, values.abs()):
        lo, hi = search(Points(some), 0, 7, symmetric=False)
        large_lo, large_hi = search(Points(some * factor), 0, 7, symmetric=False)
        torch.testing.assert_close((large_lo / factor, large_hi / factor), (lo, hi), rtol=1e-5, atol=0)


def test_rounding_error_with_counts():
    values, counts = gaussian(1, 30), torch.randint(0, 5, (1, 30), generator=torch.Generator().manual_seed(0))
    lo, hi = torch.tensor([[-1.0, -0.5]]), torch.tensor([[1.0, 2.0]])
    repeated = Points(values[0].repeat_interleave(counts[0])[None])
    expected = rounding_error(repeated, lo, hi, 0, 15, False)
    counted = rounding_error(Points(values, counts), lo, hi, 0, 15, False)
    torch.testing.assert_close(counted, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bit", [2, 3, 4, 8])
def test_golden_search_comes_close(bit, symmetric):
    """On the quantiles of a gaussian; the error of a sample of it has more than one valley."""
    values = torch.erfinv(torch.linspace(-1, 1, 4002)[1:-1])[None] * 2**0.5
    qmin, qmax = (-(2 ** (bit - 1)), 2 ** (bit - 1) - 1) if symmetric else (0, 2**bit - 1)
    golden = golden_search(Points(values), qmin, qmax, symmetric)
    grid = grid_search(Points(values), qmin, qmax, symmetric)
    ours, best = (range_loss(values, *found, qmin, qmax, symmetric) for found in (golden, grid))
    assert ours <= best * 1.02


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bit", [2, 4, 8])
def test_golden_search_one_sided(bit, sign):
    values, qmax = sign * torch.erfinv(torch.linspace(0, 1, 4002)[:-1])[None], 2**bit - 1
    ours, best = (
        range_loss(values, *search(Points(values), 0, qmax, False), 0, qmax, False)
        for search in (golden_search, grid_search)
    )
    assert ours <= best * 1.02


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
def test_a_row_of_one_value_among_others(value):
    """A dead channel; long rows are summed up in bins first."""
    values = torch.randn(3, 4608, generator=torch.Generator().manual_seed(0))
    values[1] = value
    lo, hi = grid_search(Points(values), 0, 3, False)
    alone = [grid_search(Points(values[row : row + 1]), 0, 3, False) for row in (0, 2)]
    assert lo.isfinite().all() and hi.isfinite().all()
    assert [lo[0], lo[2], hi[0], hi[2]] == [alone[0][0], alone[1][0], alone[0][1], alone[1][1]]
    scale, zero_point = scale_from_range(lo, hi, 0, 3, False)
    rounded = fake_quantize(values, scale[:, None], zero_point[:, None], 0, 3)
    torch.testing.assert_close(rounded[1], values[1], rtol=0.02, atol=1e-6)
