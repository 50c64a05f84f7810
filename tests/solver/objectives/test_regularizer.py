import pytest
import torch
from networks import weight_spec

from qdrop.quantization.fake_quant import build_quantizer
from qdrop.solver.objectives.regularizer import RoundingSchedule, rounding_loss
from qdrop.solver.objectives.squared_error import reconstruction_loss, squared_error


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounding(shape=(5, 7), seed=0):
    quantizer = build_quantizer(weight_spec(shape))
    with torch.no_grad():
        quantizer.rounding.alpha.copy_(random(*shape, seed=seed) * 2)
    return quantizer


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 3, 5), (4, 3)])
def test_reconstruction_loss(shape):
    """The sum over channels, the mean over images and positions."""
    out, target = random(*shape), random(*shape, seed=1)
    expected = ((out - target) ** 2).sum(1).mean()
    torch.testing.assert_close(squared_error(out, target), expected)
    assert squared_error(out, out) == 0


def test_reconstruction_loss_of_one_number_for_each_image():
    out, target = random(6), random(6, seed=1)
    torch.testing.assert_close(squared_error(out, target), ((out - target) ** 2).mean())


def test_reconstruction_loss_of_several_outputs_is_their_sum():
    outs, targets = ([random(4, 3, 5, 6, seed=s), random(4, 7, seed=s + 1)] for s in (0, 2))
    expected = sum(squared_error(out, target) for out, target in zip(outs, targets, strict=True))
    torch.testing.assert_close(reconstruction_loss(outs, targets), expected)
    assert torch.equal(reconstruction_loss(outs[:1], targets[:1]), squared_error(outs[0], targets[0]))


def test_reconstruction_loss_gradient():
    out, target = random(4, 3, 5, 6).requires_grad_(), random(4, 3, 5, 6, seed=1)
    squared_error(out, target).backward()
    torch.testing.assert_close(out.grad, (2 * (out - target) / (4 * 5 * 6)).detach())


@pytest.mark.parametrize(("iters", "warm_up"), [(20, 0.2), (100, 0.2), (20000, 0.2), (10, 0.0), (50, 0.5), (7, 0.3)])
def test_schedule(iters, warm_up):
    """Design, section 3: counted from 1, on from t = warm_up*T, from 20 down to 2 in equal steps."""
    schedule = RoundingSchedule(0.01, warm_up, (20.0, 2.0), iters)
    for t in range(1, iters + 1):
        weight, beta = schedule(t)
        if t < warm_up * iters:
            assert weight == 0
        else:
            expected = 2 + 18 * (1 - (t - warm_up * iters) / ((1 - warm_up) * iters))
            assert (weight, beta) == (0.01, pytest.approx(expected))
    assert schedule(iters)[1] == pytest.approx(2)


def test_published_schedule():
    schedule = RoundingSchedule(0.01, 0.2, (20.0, 2.0), 20000)
    assert schedule(3999)[0] == 0
    assert [schedule(t)[1] for t in (4000, 12000, 20000)] == pytest.approx([20, 11, 2])


def loss_of(layers, weight=1.0, beta=2.0):
    return rounding_loss(layers, torch.tensor(weight), torch.tensor(beta))


@pytest.mark.parametrize("beta", [2.0, 7.5, 20.0])
def test_rounding_loss(beta):
    layers = [rounding(), rounding((3, 2, 3, 3), seed=1)]
    expected = 0.0
    for layer in layers:
        h = (1.2 * torch.sigmoid(layer.rounding.alpha) - 0.1).clamp(0, 1)
        expected = expected + (1 - (2 * h - 1).abs() ** beta).sum()
    torch.testing.assert_close(loss_of(layers, 0.3, beta), 0.3 * expected)


def test_rounding_loss_without_weights_or_weight():
    layer = rounding()
    assert loss_of([]) == 0
    loss_of([layer], weight=0.0).backward()
    assert (layer.rounding.alpha.grad == 0).all()


def test_rounding_loss_pushes_to_the_nearer_end():
    layer = rounding((2,))
    with torch.no_grad():
        layer.rounding.alpha.copy_(torch.tensor([-0.5, 0.5]))
    loss_of([layer]).backward()
    assert layer.rounding.alpha.grad[0] > 0 > layer.rounding.alpha.grad[1]


def test_rounding_loss_is_zero_when_settled():
    layer = rounding((2,))
    with torch.no_grad():
        layer.rounding.alpha.copy_(torch.tensor([-9.0, 9.0]))
    assert loss_of([layer]) == 0


def test_rounding_loss_is_finite_everywhere():
    layer = rounding((1001,))
    with torch.no_grad():
        layer.rounding.alpha.copy_(torch.linspace(-40, 40, 1001))
    value = loss_of([layer], beta=20.0)
    value.backward()
    assert value.isfinite() and layer.rounding.alpha.grad.isfinite().all()
