import pytest
import torch

from qdrop.quantization.affine import (
    MIN_SCALE,
    along_channels,
    fake_quantize,
    integer_range,
    scale_from_range,
)
from qdrop.quantization.drop import Mask

BITS = range(2, 9)
SHAPES = {"linear": (6, 40), "conv": (6, 4, 3, 3)}


def values(shape=(6, 40), seed=0):
    """Normal values with both tails beyond any range the tests use."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def grid(bit, symmetric, channels):
    """Scales in powers of two, so that dividing and multiplying by the inverse agree, and zero points."""
    qmin, qmax = integer_range(bit, symmetric)
    scale = 2.0 ** -torch.arange(channels).remainder(3) * 8 / (qmax - qmin + 1)
    zero_point = torch.zeros(channels) if symmetric else (torch.arange(channels) + qmax // 2).clamp(max=qmax)
    return scale, zero_point.float(), qmin, qmax


def autograd(x, scale, zero_point, qmin, qmax, keep=None):
    """The definition, differentiated by torch: straight-through for the roundings, clamp as it is."""

    def ste(v):
        return v + (v.round() - v).detach()

    out = scale * ((ste(x / scale) + ste(zero_point)).clamp(qmin, qmax) - ste(zero_point))
    return out if keep is None else torch.where(keep.bool(), out, x)


def given(keep):
    """A mask that is there already."""
    return Mask(keep, lambda part: part)


def gradients(function, x, scale, zero_point, *args, weight):
    inputs = [v.clone().requires_grad_() for v in (x, scale, zero_point)]
    (function(*inputs, *args) * weight).sum().backward()
    return [v.grad for v in inputs]


@pytest.mark.parametrize("bit", BITS)
def test_integer_range(bit):
    assert integer_range(bit, symmetric=False) == (0, 2**bit - 1)
    assert integer_range(bit, symmetric=True) == (-(2 ** (bit - 1)), 2 ** (bit - 1) - 1)


@pytest.mark.parametrize("bit", [-1, 0, 1, 9, 16])
def test_unsupported_width(bit):
    with pytest.raises(ValueError, match=f"{bit}.*2 to 8"):
        integer_range(bit, symmetric=False)


def test_scale_from_range():
    lo, hi = torch.tensor([-1.0, 1.0, -4.0, 0.0]), torch.tensor([2.0, 3.0, -1.0, 0.0])
    scale, zero_point = scale_from_range(lo, hi, 0, 15, symmetric=False)
    assert scale.tolist() == pytest.approx([3 / 15, 3 / 15, 4 / 15, MIN_SCALE])
    assert zero_point.tolist() == [5, 0, 15, 0]
    scale, zero_point = scale_from_range(lo, hi, -8, 7, symmetric=True)
    assert scale.tolist() == pytest.approx([2 / 7.5, 3 / 7.5, 4 / 7.5, MIN_SCALE])
    assert zero_point.tolist() == [0, 0, 0, 0]


def test_zero_is_always_on_the_grid():
    lo, hi = -values((50,)).abs(), values((50,), 1).abs()
    scale, zero_point = scale_from_range(lo, hi, 0, 7, symmetric=False)
    assert (fake_quantize(torch.zeros(50), scale, zero_point, 0, 7) == 0).all()


def test_along_channels():
    x = torch.zeros(2, 3, 4, 5)
    assert along_channels(torch.arange(3.0), x, 1).shape == (1, 3, 1, 1)
    assert along_channels(torch.arange(2.0), x, 0).shape == (2, 1, 1, 1)
    assert along_channels(torch.ones(1), x, -1).shape == (1,)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bit", BITS)
def test_per_channel_like_torch(bit, symmetric, shape):
    x = values(shape)
    scale, zero_point, qmin, qmax = grid(bit, symmetric, shape[0])
    s, z = along_channels(scale, x, 0), along_channels(zero_point, x, 0)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero_point.int(), 0, qmin, qmax)
    assert torch.equal(fake_quantize(x, s, z, qmin, qmax), expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bit", BITS)
def test_per_tensor_like_torch(bit, symmetric, shape):
    """Values everywhere, and the input's gradient inside the range and outside.

    At the two end levels torch's operator passes the gradient; here it stops, as it does at the ends of
    `clamp` in the formula with which the golden traces were made.
    """
    x = values(shape)
    scale, zero_point, qmin, qmax = grid(bit, symmetric, 1)
    x, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = fake_quantize(x, scale, zero_point, qmin, qmax)
    expected = torch.fake_quantize_per_tensor_affine(reference, scale.item(), int(zero_point), qmin, qmax)
    assert torch.equal(out, expected)

    weight = values(shape, 1)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    level = (x / scale).round() + zero_point
    inside, outside = (level > qmin) & (level < qmax), (level < qmin) | (level > qmax)
    assert inside.any() and outside.any()
    assert torch.equal(x.grad[inside], reference.grad[inside]) and torch.equal(x.grad[inside], weight[inside])
    assert torch.equal(x.grad[outside], reference.grad[outside]) and (x.grad[outside] == 0).all()
    assert (x.grad[~inside] == 0).all()


@pytest.mark.parametrize("ch_axis", [-1, 0, 1])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bit", [2, 4, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_definition(bit, symmetric, ch_axis, masked):
    x, weight = values((6, 4, 3, 3)), values((6, 4, 3, 3), 1)
    channels = 1 if ch_axis == -1 else x.shape[ch_axis]
    scale, zero_point, qmin, qmax = grid(bit, symmetric, channels)
    scale = scale * 1.1
    keep = (values(x.shape, 2) > 0).float() if masked else None
    args = (along_channels(scale, x, ch_axis), along_channels(zero_point, x, ch_axis), qmin, qmax)
    ours = gradients(fake_quantize, x, *args, given(keep) if masked else None, weight=weight)
    expected = gradients(autograd, x, *args, keep, weight=weight)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[2], expected[2], rtol=1e-4, atol=1e-4)


def test_scale_and_zero_point_gradients_by_hand():
    """LSQ, equation 3, and LSQ+: one value below, two inside, one above the range 0..15."""
    scale, zero_point = torch.tensor([0.5], requires_grad=True), torch.tensor([4.0], requires_grad=True)
    x = torch.tensor([-9.0, 0.8, -0.3, 20.0], requires_grad=True)
    out = fake_quantize(x, scale, zero_point, 0, 15)
    assert out.tolist() == [-2.0, 1.0, -0.5, 5.5]
    slopes = [0 - 4, 2 - 0.8 / 0.5, -1 + 0.3 / 0.5, 15 - 4]
    for index, slope in enumerate(slopes):
        inputs = torch.autograd.grad(out[index], (x, scale, zero_point), retain_graph=True)
        inside = index in (1, 2)
        assert inputs[0][index] == (1 if inside else 0)
        assert inputs[1].item() == pytest.approx(slope, rel=1e-6)
        assert inputs[2].item() == (0 if inside else -0.5)


def test_keep_nothing_is_the_input_exactly():
    x = values().requires_grad_()
    scale = torch.tensor([0.3], requires_grad=True)
    weight = values(seed=1)
    out = fake_quantize(x, scale, torch.tensor([7.0]), 0, 15, given(torch.zeros_like(x)))
    assert torch.equal(out, x)
    (out * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    assert scale.grad.item() == 0


def test_keep_everything_is_quantized_exactly():
    x, scale, zero_point = values(), torch.tensor([0.3]), torch.tensor([7.0])
    args = (scale, zero_point, 0, 15)
    assert torch.equal(fake_quantize(x, *args, given(torch.ones_like(x))), fake_quantize(x, *args))
    ours = gradients(fake_quantize, x, *args, given(torch.ones_like(x)), weight=values(seed=1))
    expected = gradients(fake_quantize, x, *args, weight=values(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_keep_some():
    x, scale, zero_point = values(), torch.tensor([0.3]), torch.tensor([7.0])
    keep = (values(seed=3) > 0.5).float()
    mixed = fake_quantize(x, scale, zero_point, 0, 15, given(keep))
    rounded = fake_quantize(x, scale, zero_point, 0, 15)
    assert torch.equal(mixed, torch.where(keep.bool(), rounded, x))


@pytest.mark.parametrize("symmetric", [False, True])
def test_all_zero_input(symmetric):
    qmin, qmax = integer_range(4, symmetric)
    zero = torch.zeros(1)
    scale, zero_point = scale_from_range(zero, zero, qmin, qmax, symmetric)
    x = torch.zeros(3, 5, requires_grad=True)
    out = fake_quantize(x, scale.requires_grad_(), zero_point, qmin, qmax)
    out.sum().backward()
    assert (out == 0).all() and scale.grad.isfinite().all() and x.grad.isfinite().all()


def test_inputs_are_not_written_to():
    x, scale, zero_point = values(), torch.tensor([0.3]), torch.tensor([7.0])
    keep = (values(seed=3) > 0).float()
    before = [v.clone() for v in (x, scale, zero_point, keep)]
    gradients(fake_quantize, x, scale, zero_point, 0, 15, given(keep), weight=values(seed=1))
    fake_quantize(x, scale, zero_point, 0, 15, given(keep))
    assert all(torch.equal(a, b) for a, b in zip(before, (x, scale, zero_point, keep), strict=True))


@pytest.mark.parametrize("shape", [(3, 0), (1,), (2, 3, 4, 5)])
def test_non_contiguous_and_empty(shape):
    x = values(shape)
    view = x.transpose(0, -1)
    expected = fake_quantize(view.contiguous(), torch.tensor([0.3]), torch.tensor([7.0]), 0, 15)
    assert torch.equal(fake_quantize(view, torch.tensor([0.3]), torch.tensor([7.0]), 0, 15), expected)
