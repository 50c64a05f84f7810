import pytest
import torch

from qdrop.quantization.blocks import BLOCK
from qdrop.quantization.rounding.adaround import alpha_of, soft_levels, undecided


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def h(alpha):
    """AdaRound, eq. 23, for autograd."""
    return (1.2 * torch.sigmoid(alpha) - 0.1).clamp(0, 1)


def of_integers(shape=(6, 5, 3, 3), span=3.0, dtype=torch.float32):
    """Roundings of which some are decided, and integers of which some are beyond 0 to 7."""
    alpha = (span * random(*shape)).to(dtype).requires_grad_()
    return alpha, (3 + 4 * random(*shape, seed=1)).round().to(dtype)


def values_and_gradients(function, alpha, by):
    """What a function of `alpha` is, and the gradient of its product with `by`."""
    value = function(alpha)
    return value, torch.autograd.grad((value * by).sum(), alpha)[0]


def test_levels_are_the_formula():
    alpha, floor = of_integers()
    by = random(*alpha.shape, seed=2)
    ours = values_and_gradients(lambda a: soft_levels(a, floor, 0, 7), alpha, by)
    theirs = values_and_gradients(lambda a: (floor + h(a)).clamp(0, 7), alpha, by)
    torch.testing.assert_close(ours, theirs)
    still = ours[1] == 0
    assert 0.1 < still.float().mean() < 0.9  # both clamps are at work, and not everywhere


@pytest.mark.parametrize("beta", [1.0, 2.0, 7.5, 20.0])
def test_undecided_is_the_formula(beta):
    alpha, _ = of_integers()
    ours = values_and_gradients(lambda a: undecided(a, torch.tensor(beta)), alpha, torch.tensor(0.3))
    theirs = values_and_gradients(lambda a: (1 - (2 * h(a) - 1).abs() ** beta).sum(), alpha, torch.tensor(0.3))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    alpha, floor = of_integers((20,), span=0.8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: soft_levels(a, floor, -20, 20), alpha)
    assert torch.autograd.gradcheck(lambda a: undecided(a, torch.tensor(3.0)), alpha)


def test_blocks_change_nothing(monkeypatch):
    """A weight of more than one block, in either layout, gives what its parts give."""
    alpha, floor = of_integers((32, 16, 3, 3))
    expected = values_and_gradients(lambda a: soft_levels(a, floor, 0, 7), alpha, torch.tensor(1.0))
    amount = undecided(alpha, torch.tensor(5.0))
    size = 64  # whole registers: of what is left over, a sigmoid may differ in its last digit
    monkeypatch.setattr("qdrop.quantization.blocks.BLOCK", size)
    assert BLOCK > alpha.numel() > size * torch.get_num_threads()
    last = alpha.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    for rounding in (alpha, last):
        found = values_and_gradients(lambda a: soft_levels(a, floor, 0, 7), rounding, torch.tensor(1.0))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(undecided(rounding, torch.tensor(5.0)), amount)


def test_rounding_stays_between_down_and_up():
    alpha = torch.linspace(-50, 50, 1001)
    found = soft_levels(alpha, torch.zeros_like(alpha), 0, 1)
    assert found.min() == 0 and found.max() == 1
    assert (found.diff() >= 0).all()


def test_alpha_of_is_the_inverse():
    fraction = torch.linspace(0.001, 0.999, 101)
    torch.testing.assert_close(h(alpha_of(fraction)), fraction, rtol=0, atol=1e-6)


def test_the_middle_is_undecided_and_does_not_move():
    """h = 0.5 is as far from 0 as from 1; a derivative of the power there would be infinite in its logarithm."""
    alpha = torch.zeros(3, requires_grad=True)
    value, gradient = values_and_gradients(lambda a: undecided(a, torch.tensor(2.0)), alpha, torch.tensor(1.0))
    assert value == 3 and gradient.abs().max() < 1e-6
