import math

import pytest
import torch
from test_range_search import exhaustive, range_loss

from qdrop.quantization.affine import fake_quantize, scale_from_range
from qdrop.quantization.observer import MSEObserver
from qdrop.registry import OBSERVERS

FAST = {"MSEFastObserver", "AvgMSEFastObserver"}


def batches(count=4, shape=(8, 3, 16, 16), relu=False):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) * (1 + i) for i in range(count)]
    return [v.relu() for v in values] if relu else values


def observed(name, tensors, bit=4, symmetric=False, ch_axis=-1):
    observer = OBSERVERS[name](bit, symmetric, ch_axis)
    for x in tensors:
        observer.observe(x)
    return observer.range()


@pytest.mark.parametrize("name", OBSERVERS)
def test_registered_by_class_name(name):
    assert OBSERVERS[name].__name__ == name


@pytest.mark.parametrize("ch_axis", [-1, 0, 1])
@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_observed(name, ch_axis):
    with pytest.raises(ValueError, match="no tensor"):
        OBSERVERS[name](4, False, ch_axis).range()


@pytest.mark.parametrize("name", ["MSEObserver", "MSEFastObserver"])
@pytest.mark.parametrize("relu", [False, True], ids=["two-sided", "one-sided"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bit", [2, 4, 8])
def test_histogram_against_all_values_at_once(bit, symmetric, relu, name):
    tensors = batches(shape=(4, 3, 10, 10), relu=relu)
    everything = torch.cat(tensors).reshape(1, -1)
    qmin, qmax = (-(2 ** (bit - 1)), 2 ** (bit - 1) - 1) if symmetric else (0, 2**bit - 1)
    lo, hi = observed(name, tensors, bit, symmetric)
    best = exhaustive(everything, qmin, qmax, symmetric)
    ours = range_loss(everything, lo, hi, qmin, qmax, symmetric)
    assert ours <= best * (1.06 if name in FAST else 1.005)


def test_growing_range_keeps_what_was_seen():
    """Each tensor is ten times wider than the one before: bins move, counts stay."""
    observer = MSEObserver(4, False, -1)
    tensors = [torch.randn(1000, generator=torch.Generator().manual_seed(i)) * 10**i for i in range(4)]
    for x in tensors:
        observer.observe(x)
    points = observer._points
    assert points.counts.sum() == 4000
    assert points.lo == torch.cat(tensors).min() and points.hi == torch.cat(tensors).max()
    mean = (points.values * points.counts).sum() / 4000
    assert mean.item() == pytest.approx(torch.cat(tensors).mean().item(), abs=points.hi.item() / 10_000)


@pytest.mark.parametrize("name", ["MinMaxObserver", "MSEObserver", "MSEFastObserver"])
@pytest.mark.parametrize("relu", [False, True])
def test_does_not_depend_on_the_batch_size(name, relu):
    """Bins end elsewhere; a continuous search moves along a flat valley by a little."""
    everything = torch.cat(batches(relu=relu))
    one = observed(name, [everything])
    tolerance = 5e-3 if name in FAST else 2e-4
    for size in (1, 5, 16):
        split = observed(name, everything.split(size))
        assert [v.item() for v in split] == pytest.approx([v.item() for v in one], rel=tolerance, abs=1e-6)


def test_min_max():
    tensors = batches()
    assert [v.item() for v in observed("MinMaxObserver", tensors)] == [
        min(x.min().item() for x in tensors),
        max(x.max().item() for x in tensors),
    ]


def test_min_max_per_channel():
    tensors = batches()
    lo, hi = observed("MinMaxObserver", tensors, ch_axis=1)
    everything = torch.cat(tensors).transpose(0, 1).flatten(1)
    assert torch.equal(lo, everything.amin(1)) and torch.equal(hi, everything.amax(1))


@pytest.mark.parametrize("ch_axis", [-1, 1])
@pytest.mark.parametrize("name", ["MinMaxObserver", "MSEObserver", "MSEFastObserver"])
def test_averaged(name, ch_axis):
    tensors = batches(3, (2, 3, 6, 6))
    each = [observed(name, [x], ch_axis=ch_axis) for x in tensors]
    lo, hi = observed(f"Avg{name}", tensors, ch_axis=ch_axis)
    torch.testing.assert_close(lo, sum(r[0] for r in each) / 3)
    torch.testing.assert_close(hi, sum(r[1] for r in each) / 3)


@pytest.mark.parametrize("shape", [(6, 9), (6, 2, 3, 3), (6, 4, 5)])
def test_weights_per_channel(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = weight.flatten(1)
    lo, hi = observed("MSEObserver", [weight], bit=3, ch_axis=0)
    assert lo.shape == hi.shape == (6,)
    best = exhaustive(rows, 0, 7)
    torch.testing.assert_close(range_loss(rows, lo, hi, 0, 7, False), best, rtol=1e-3, atol=0)


def test_activations_per_channel_over_batches():
    tensors = batches(3, (2, 4, 5, 5))
    rows = torch.cat(tensors).transpose(0, 1).flatten(1)
    lo, hi = observed("MSEObserver", tensors, bit=3, ch_axis=1)
    torch.testing.assert_close(range_loss(rows, lo, hi, 0, 7, False), exhaustive(rows, 0, 7), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_constant_tensor(name, value):
    x = torch.full((2, 3), value)
    scale, zero_point = scale_from_range(*observed(name, [x] * 2), 0, 15, symmetric=False)
    torch.testing.assert_close(fake_quantize(x, scale, zero_point, 0, 15), x, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_gradients_are_not_kept(name):
    x = torch.randn(4, 3, requires_grad=True)
    lo, hi = observed(name, [x * 2])
    assert not lo.requires_grad and not hi.requires_grad


@pytest.mark.parametrize("ch_axis", [-1, 1])
@pytest.mark.parametrize("name", OBSERVERS)
def test_observing_never_waits_for_the_device(name, ch_axis, monkeypatch):
    """Nothing is read back to the host: a number, a truth value, a list or an array."""
    tensors = batches(2, (2, 3, 4, 4))
    observer = OBSERVERS[name](4, False, ch_axis)

    def refuse(*args, **kwargs):
        raise AssertionError("a tensor was moved to the host")

    for method in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    for x in tensors:
        observer.observe(x)
    monkeypatch.undo()
    assert all(v.isfinite().all() for v in observer.range())


def test_observing_leaves_the_tensor():
    x = torch.randn(3, 4)
    before = x.clone()
    for name in OBSERVERS:
        observed(name, [x])
    assert torch.equal(x, before)


def test_a_long_tensor_costs_no_more_memory_than_bins():
    observer = MSEObserver(4, False, -1)
    observer.observe(torch.randn(200_000))
    assert math.prod(observer._points.values.shape) < 200_000


def test_clipping_observer_gives_up_outliers():
    """Ten thousand values around 0 and a few far ones: the published exponent rounds nearly all to 0."""
    values = torch.randn(1, 10_000, generator=torch.Generator().manual_seed(0)) * 0.6
    values[0, :20] = 30.0

    def rounded_to_zero(name):
        scale, zero_point = scale_from_range(*observed(name, [values]), 0, 15, False)
        return float((fake_quantize(values, scale, zero_point, 0, 15) == 0).float().mean())

    assert rounded_to_zero("MSEObserver") > 0.9
    assert rounded_to_zero("ClippingObserver") < 0.6
