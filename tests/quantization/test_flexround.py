"""Rounding by division, and a scale that learns beside the rounding, on weights that can be followed by hand."""

import math

import pytest
import torch
from networks import weight_spec

from qdrop.quantization.fake_quant import build_quantizer
from qdrop.quantization.spec import Group


def by_hand(quantizer_name, weight, scale, zero_point, **spec):
    """A quantizer of a weight on a grid that is given."""
    quantizer = build_quantizer(weight_spec(tuple(weight.shape), quantizer=quantizer_name, **spec))
    quantizer.active = True
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor(scale))
        quantizer.zero_point.copy_(torch.tensor(zero_point))
    quantizer.prepare(weight)
    return quantizer


def test_flexround_divides_each_element_before_it_is_rounded():
    weight = torch.tensor([[0.6, -0.3, 0.1]])
    quantizer = by_hand("FlexRoundFakeQuantize", weight, [0.2], [1.0])
    assert torch.allclose(quantizer(weight), torch.tensor([[0.4, -0.2, 0.0]]))  # 3, -1.5 (to even -2), 0.5 (to even 0)
    elements, rows = quantizer.rounding.logarithms
    assert (elements.shape, rows.shape) == ((1, 3), (1, 1))
    with torch.no_grad():
        elements.copy_(torch.tensor([[math.log(2), 0.0, math.log(0.5)]]))
        rows.fill_(math.log(0.5))
    with quantizer.learning(weight):  # 0.6 / (0.2 * 2 * 0.5) = 3, clamped to 2; -3, to -1; 0.1 / (0.2 * 0.25) = 2
        assert torch.allclose(quantizer(weight), torch.tensor([[0.4, -0.2, 0.4]]))
        assert quantizer.harden(weight) == pytest.approx(1 / 3)
    assert torch.allclose(quantizer(weight), torch.tensor([[0.4, -0.2, 0.4]]))
    assert quantizer.integers(weight).tolist() == [[3, 0, 3]]


def test_flexround_gradients_pass_the_rounding_straight():
    """Of `s * round(w / (s * exp(l)))` for l: `-w / exp(l)`; for s, through both of its places: the rounded steps minus
    the unrounded, as in LSQ; times the factor of LSQ."""
    weight = torch.tensor([[0.28]])
    quantizer = by_hand("FlexRoundFakeQuantize", weight, [0.2], [1.0])
    with quantizer.learning(weight):
        quantizer(weight).sum().backward()
    for part in quantizer.rounding.logarithms:
        assert part.grad.item() == pytest.approx(-0.28)
    assert quantizer.scale.grad.item() == pytest.approx((1 - 1.4) / math.sqrt(3))


def test_flexround_of_a_convolution_has_factors_of_input_channels_too():
    weight = torch.randn(4, 3, 2, 2)
    quantizer = by_hand("FlexRoundFakeQuantize", weight, [0.5] * 4, [1.0] * 4)
    assert [tuple(part.shape) for part in quantizer.rounding.logarithms] == [(4, 3, 2, 2), (4, 1, 1, 1), (1, 3, 1, 1)]
    assert set(map(id, quantizer.param_groups()[Group.ROUNDING])) == set(map(id, quantizer.rounding.logarithms))
    assert quantizer.param_groups()[Group.WEIGHT_SCALE] == [quantizer.scale]


def test_genie_keeps_the_integers_of_the_first_scale_while_the_scale_learns():
    weight = torch.tensor([[0.3, -0.1]])
    quantizer = by_hand("AdaRoundLSQFakeQuantize", weight, [0.2], [1.0])  # w/s = 1.5, -0.5: down 1, -1; half up
    with quantizer.learning(weight):
        assert torch.allclose(quantizer(weight), weight)
        with torch.no_grad():
            quantizer.scale.fill_(0.4)  # integers 1.5 and -0.5 still
        out = quantizer(weight)
        assert torch.allclose(out, torch.tensor([[0.6, -0.2]]))
        out.sum().backward()  # for the scale: 1.5 - 0.5, times 1/sqrt(numel * qmax)
        assert quantizer.scale.grad.item() == pytest.approx(1.0 / math.sqrt(2 * 3))
        with torch.no_grad():
            quantizer.rounding.alpha.copy_(torch.tensor([[-1.0, 1.0]]))
        quantizer.harden(weight)
    assert torch.allclose(quantizer(weight), torch.tensor([[0.4, 0.0]]))  # 1 and 0, on the scale that was learned
