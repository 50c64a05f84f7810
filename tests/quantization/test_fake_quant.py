import itertools
import math

import pytest
import torch
from networks import activation_spec, weight_spec

from qdrop.quantization.drop import Drop, stream
from qdrop.quantization.fake_quant import (
    FixedFakeQuantize,
    LSQFakeQuantize,
    LSQPlusFakeQuantize,
    build_quantizer,
)
from qdrop.quantization.rounding.adaround import AdaRound, soft_levels
from qdrop.quantization.rounding.nearest import Nearest

SPECS = {
    "fixed": activation_spec(quantizer="FixedFakeQuantize"),
    "lsq": activation_spec(quantizer="LSQFakeQuantize"),
    "lsq per channel": activation_spec(quantizer="LSQFakeQuantize", ch_axis=1),
    "lsq+": activation_spec(quantizer="LSQPlusFakeQuantize"),
    "adaround": weight_spec((4, 3, 3, 3)),
    "adaround per tensor": weight_spec((4, 3), ch_axis=-1, bit=4),
    "lsq weight": weight_spec(quantizer="LSQFakeQuantize"),
    "fixed weight": weight_spec(quantizer="FixedFakeQuantize", symmetric=True),
}


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drop(prob, seed=0):
    return Drop(prob, stream(torch.Generator().manual_seed(seed)))


def adaround(shape=(4, 30), bit=2, **kwargs):
    """A calibrated weight quantizer and its weight."""
    weight = random(shape)
    quantizer = build_quantizer(weight_spec(shape, bit, **kwargs))
    observer = quantizer.new_observer()
    observer.observe(weight)
    quantizer.set_range(*observer.range())
    quantizer.prepare(weight)
    quantizer.active = True
    return quantizer, weight


def steps(quantizer, weight):
    """w/s and the zero point, shaped like the weight."""
    shape = (-1,) + (1,) * (weight.ndim - 1)
    return weight / quantizer.scale.view(shape), quantizer.zero_point.view(shape)


# ---- the drop ----


@pytest.mark.parametrize("prob", [0.01, 0.1, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(100_001,), (64, 3, 23, 23)])
def test_drop_keeps_with_its_probability(prob, shape):
    source = drop(prob)
    masks = torch.stack([source.mask(torch.empty(shape)).whole() for _ in range(3)])
    assert ((masks == 0) | (masks == 1)).all()
    deviation = abs(masks.mean().item() - prob)
    assert deviation < 5 * math.sqrt(prob * (1 - prob) / masks.numel()) + 2**-16


@pytest.mark.parametrize("lag", [1, 2, 3, 4])
def test_drop_is_independent_of_its_neighbours(lag):
    mask = drop(0.5).mask(torch.empty(200_000)).whole()
    both = (mask[lag:] * mask[:-lag]).mean().item()
    assert both == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 200_000))


def test_drop_never_and_always():
    like = torch.empty(50_000)
    assert (drop(1.0).mask(like).whole() == 1).all()
    assert (drop(0.0).mask(like).whole() == 0).all()


def test_drop_depends_on_its_generator_alone():
    like = torch.empty(1000)
    source = drop(0.5, seed=3)
    first, second = source.mask(like).whole(), source.mask(like).whole()
    again = drop(0.5, seed=3)
    torch.manual_seed(0)
    assert torch.equal(first, again.mask(like).whole()) and torch.equal(second, again.mask(like).whole())
    assert not torch.equal(first, second)
    assert not torch.equal(first, drop(0.5, seed=4).mask(like).whole())


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (0,)])
def test_drop_of_any_size(shape):
    mask = drop(0.5).mask(torch.empty(shape, dtype=torch.float32)).whole()
    assert mask.shape == shape and mask.dtype == torch.float32


def test_mix_takes_each_element_from_one_side():
    quantized, full = random((400,), 1), random((400,), 2)
    mixed = drop(0.3).mix(quantized, full)
    mask = drop(0.3).mask(full).whole().bool()
    assert torch.equal(mixed, torch.where(mask, quantized, full))
    assert torch.equal(drop(1.0).mix(quantized, full), quantized)
    assert torch.equal(drop(0.0).mix(quantized, full), full)


# ---- every quantizer ----


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_everything_is_registered_with_its_final_shape(spec):
    quantizer = build_quantizer(spec)
    before = {key: value.shape for key, value in quantizer.state_dict().items()}
    values = random(spec.shape if spec.kind == "weight" else (2, *spec.shape))
    observer = quantizer.new_observer()
    observer.observe(values)
    quantizer.set_range(*observer.range())
    if spec.kind == "weight":
        quantizer.prepare(values)
        quantizer.harden(values)
    quantizer.active = True
    quantizer(values)
    assert {key: value.shape for key, value in quantizer.state_dict().items()} == before
    assert {"scale", "zero_point"} <= set(before)
    assert before["scale"] == before["zero_point"] == (spec.channels,)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_state_dict_rebuilds_the_quantizer(spec):
    quantizer, copy = build_quantizer(spec), build_quantizer(spec)
    values = random(spec.shape if spec.kind == "weight" else (2, *spec.shape))
    quantizer.set_range(-torch.ones(spec.channels), 2 * torch.ones(spec.channels))
    if spec.kind == "weight":
        quantizer.prepare(values)
    copy.load_state_dict(quantizer.state_dict())
    quantizer.active = copy.active = True
    assert torch.equal(copy(values), quantizer(values))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_passes_until_switched_on(spec):
    quantizer = build_quantizer(spec)
    x = random(spec.shape)
    assert quantizer(x) is x


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_what_is_learned(spec):
    quantizer = build_quantizer(spec)
    groups = quantizer.param_groups()
    assert sorted(map(id, itertools.chain(*groups.values()))) == sorted(map(id, quantizer.parameters()))
    kind, rounding, learned = {
        "FixedFakeQuantize": (FixedFakeQuantize, Nearest, set()),
        "LSQFakeQuantize": (LSQFakeQuantize, Nearest, {f"{spec.kind}_scale"}),
        "LSQPlusFakeQuantize": (LSQPlusFakeQuantize, Nearest, {f"{spec.kind}_scale", "zero_point"}),
        "AdaRoundFakeQuantize": (FixedFakeQuantize, AdaRound, {"rounding"}),
    }[spec.quantizer]
    assert (type(quantizer), type(quantizer.rounding)) == (kind, rounding)
    assert {group for group, parameters in groups.items() if parameters} == learned


def test_adaround_is_for_weights():
    with pytest.raises(ValueError, match=r"layer\.output_quantizer.*AdaRound"):
        build_quantizer(activation_spec(quantizer="AdaRoundFakeQuantize"))


@pytest.mark.parametrize("quantizer", ["FixedFakeQuantize", "LSQFakeQuantize", "LSQPlusFakeQuantize"])
def test_rounds_to_its_grid(quantizer):
    module = build_quantizer(activation_spec(quantizer=quantizer, bit=3))
    module.set_range(torch.tensor([-1.0]), torch.tensor([2.5]))
    module.active = True
    out = module(random((2, 3, 8, 8)))
    assert set(out.unique().tolist()) <= {k * 0.5 for k in range(-2, 6)}
    assert torch.equal(module(out), out)


def test_dropping_mixes_the_input_back_in():
    module = build_quantizer(activation_spec())
    module.set_range(torch.tensor([-2.0]), torch.tensor([2.0]))
    module.active = True
    x = random((2, 3, 8, 8))
    rounded = module(x)
    for prob in (0.0, 0.5, 1.0):
        module.drop = drop(prob)
        keep = drop(prob).mask(x).whole().bool() if prob < 1 else torch.ones_like(x).bool()
        assert torch.equal(module(x), torch.where(keep, rounded, x))


def test_drop_does_not_touch_weights():
    quantizer, weight = adaround()
    rounded = quantizer(weight)
    quantizer.drop = drop(0.0)
    assert torch.equal(quantizer(weight), rounded)


# ---- LSQ ----


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ch_axis", [-1, 1])
@pytest.mark.parametrize("bit", [2, 4, 8])
def test_lsq_scales_the_gradient_of_the_scale(bit, ch_axis, symmetric):
    x, weight = random((5, 3, 8, 8)), random((5, 3, 8, 8), 1)
    spec = activation_spec(bit=bit, ch_axis=ch_axis, symmetric=symmetric)
    fixed, lsq = FixedFakeQuantize(spec), LSQFakeQuantize(spec)
    for module in (fixed, lsq):
        module.set_range(torch.full((spec.channels,), -2.0), torch.full((spec.channels,), 2.2))
        module.active = True
    fixed.scale.requires_grad_()
    assert torch.equal(fixed(x), lsq(x))
    (fixed(x) * weight).sum().backward()
    (lsq(x) * weight).sum().backward()
    factor = 1 / math.sqrt(x.numel() / spec.channels * lsq.qmax)
    torch.testing.assert_close(lsq.scale.grad, fixed.scale.grad * factor)


def test_lsq_gradient_factor_is_that_of_the_batch():
    x = random((5, 3, 8, 8))
    lsq = build_quantizer(activation_spec(bit=4))
    lsq.set_range(torch.tensor([-2.0]), torch.tensor([2.0]))
    lsq.active = True
    lsq(x).sum().backward()
    level = ((x / lsq.scale).round() + lsq.zero_point).clamp(0, 15) - lsq.zero_point
    inside = (level + lsq.zero_point > 0) & (level + lsq.zero_point < 15)
    slope = torch.where(inside, level - x / lsq.scale, level).sum()
    assert lsq.scale.grad.item() == pytest.approx(slope.item() / math.sqrt(x.numel() * 15), rel=1e-4)


def test_lsq_plus_learns_its_zero_point():
    x = random((5, 3, 8, 8)) + 3
    module = build_quantizer(activation_spec(quantizer="LSQPlusFakeQuantize"))
    module.set_range(torch.tensor([-2.0]), torch.tensor([2.0]))
    module.active = True
    module(x).sum().backward()
    level = (x / module.scale).round() + module.zero_point
    clamped = ((level <= 0) | (level >= 15)).sum() * module.scale
    expected = -clamped.item() / math.sqrt(x.numel() * 15)
    assert module.zero_point.grad.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
def test_lsq_plus_leaves_the_zero_point_of_a_symmetric_grid(symmetric):
    module = build_quantizer(activation_spec(quantizer="LSQPlusFakeQuantize", symmetric=symmetric))
    assert any(parameter is module.zero_point for parameter in module.param_groups()["zero_point"]) != symmetric


def test_lsq_plus_rounds_with_an_integer_zero_point():
    module = build_quantizer(activation_spec(quantizer="LSQPlusFakeQuantize", bit=3))
    module.set_range(torch.tensor([-1.0]), torch.tensor([2.5]))
    module.active = True
    x = random((2, 3, 8, 8))
    expected = module(x)
    with torch.no_grad():
        module.zero_point.add_(0.3)
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("quantizer", ["LSQFakeQuantize", "LSQPlusFakeQuantize"])
def test_constrain_keeps_the_scale_positive(quantizer):
    module = build_quantizer(activation_spec(quantizer=quantizer))
    for value in (-0.5, 0.0, 1e-12):
        with torch.no_grad():
            module.scale.fill_(value)
        module.constrain()
        assert module.scale.item() == pytest.approx(max(abs(value), 1e-8))


def test_constrain_keeps_the_zero_point_in_range():
    module = build_quantizer(activation_spec(quantizer="LSQPlusFakeQuantize"))
    for value, expected in ((-3.0, 0.0), (99.0, 15.0), (4.4, 4.4)):
        with torch.no_grad():
            module.zero_point.fill_(value)
        module.constrain()
        assert module.zero_point.item() == pytest.approx(expected)


# ---- AdaRound ----


@pytest.mark.parametrize("shape", [(4, 30), (4, 3, 3, 3)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bit", [2, 3, 4, 8])
def test_adaround_starts_at_the_weight(bit, symmetric, shape):
    """h(alpha) is the fraction of w/s: inside the range the soft weight is the weight."""
    quantizer, weight = adaround(shape, bit, symmetric=symmetric)
    ratio, zero_point = steps(quantizer, weight)
    h = soft_levels(quantizer.rounding.alpha, torch.zeros_like(weight), 0, 1)
    torch.testing.assert_close(h, ratio - ratio.floor(), rtol=0, atol=2e-5)
    inside = (ratio + zero_point > quantizer.qmin) & (ratio + zero_point < quantizer.qmax)
    assert inside.float().mean() > 0.5
    with quantizer.learning(weight):
        soft = quantizer(weight)
    torch.testing.assert_close(soft[inside], weight[inside], rtol=0, atol=1e-4)
    ends = (
        (quantizer.qmin, ratio + zero_point <= quantizer.qmin),
        (quantizer.qmax, ratio + zero_point >= quantizer.qmax),
    )
    for end, beyond in ends:
        expected = ((end - zero_point) * ratio.new_ones(()) * (weight / ratio)).expand_as(weight)
        torch.testing.assert_close(soft[beyond], expected[beyond], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bit", [2, 3, 4, 8])
def test_adaround_off_is_round_to_nearest(bit, symmetric):
    quantizer, weight = adaround(bit=bit, symmetric=symmetric)
    fixed = FixedFakeQuantize(weight_spec((4, 30), bit, "FixedFakeQuantize", symmetric=symmetric))
    fixed.load_state_dict({k: v for k, v in quantizer.state_dict().items() if not k.startswith("rounding.")})
    fixed.active = True
    torch.testing.assert_close(quantizer(weight), fixed(weight), rtol=1e-6, atol=1e-7)
    assert quantizer.rounding.levels.min() >= 0 and quantizer.rounding.levels.max() <= 2**bit - 1


def test_adaround_hardens_without_learning_at_the_nearest():
    quantizer, weight = adaround()
    nearest = quantizer.rounding.levels.clone()
    assert quantizer.harden(weight) == 0
    assert torch.equal(quantizer.rounding.levels, nearest)


def test_adaround_hardens_where_alpha_says():
    quantizer, weight = adaround(bit=4)
    ratio, zero_point = steps(quantizer, weight)
    up = random(weight.shape, 5) > 0
    with torch.no_grad():
        quantizer.rounding.alpha.copy_(torch.where(up, 0.7, -0.7))
        quantizer.rounding.alpha[0, 0] = 0.0  # a tie goes up
    up[0, 0] = True
    nearest = quantizer.rounding.levels.clone()
    share = quantizer.harden(weight)
    expected = (ratio.floor() + up + zero_point).clamp(0, 15)
    assert torch.equal(quantizer.rounding.levels.float(), expected)
    assert share == pytest.approx((quantizer.rounding.levels != nearest).float().mean().item())
    torch.testing.assert_close(quantizer(weight), (expected - zero_point) * (weight / ratio), rtol=1e-4, atol=1e-6)


def test_adaround_hardens_once():
    """Settling twice gives the same integers: a resumed run may do so."""
    quantizer, weight = adaround(bit=4)
    with torch.no_grad():
        quantizer.rounding.alpha.copy_(random(weight.shape, 5))
    quantizer.harden(weight)
    once = quantizer.rounding.levels.clone()
    quantizer.harden(weight)
    assert torch.equal(quantizer.rounding.levels, once)


def test_adaround_learns_by_gradient():
    quantizer, weight = adaround(bit=4)
    target = random(weight.shape, 1)
    with quantizer.learning(weight):
        ((quantizer(weight) - target) ** 2).sum().backward()
    ratio, zero_point = steps(quantizer, weight)
    sigmoid = torch.sigmoid(quantizer.rounding.alpha.detach())
    scale = weight / ratio
    expected = 2 * (weight - target) * scale * 1.2 * sigmoid * (1 - sigmoid)
    inside = (ratio + zero_point > 0.01) & (ratio + zero_point < 14.99)
    torch.testing.assert_close(quantizer.rounding.alpha.grad[inside], expected[inside], rtol=1e-3, atol=1e-4)
    assert (quantizer.rounding.alpha.grad[inside] != 0).all()
    assert quantizer.scale.grad is None and not quantizer.scale.requires_grad


def test_adaround_leaves_the_weight():
    quantizer, weight = adaround()
    before = weight.clone()
    with quantizer.learning(weight):
        quantizer(weight)
    quantizer.harden(weight)
    assert torch.equal(weight, before)
