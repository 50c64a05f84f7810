import pytest
import torch
from networks import images, network, quantized

from qdrop.graph.insert import quantized_weights
from qdrop.graph.scopes import calibrating, harden, learning_rounding
from qdrop.quantization.drop import Drop, stream
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import dropping, quantizers, quantizing


@pytest.fixture(scope="module")
def shared():
    return quantized(network("residual"))[0]


@pytest.fixture
def model(shared):
    """A calibrated model; every test must leave it switched off."""
    assert is_off(shared)
    yield shared
    assert is_off(shared)


def state(model):
    return [(q.active, q.observer, q.drop, getattr(q.rounding, "start", None) is not None) for q in quantizers(model)]


def is_off(model):
    return all(s == (False, None, None, False) for s in state(model))


def a_drop(prob=0.5):
    return Drop(prob, stream(torch.Generator().manual_seed(0)))


SCOPES = {
    "calibrating": calibrating,
    "quantizing": quantizing,
    "weights only": lambda m: quantizing(m, activations=False),
    "dropping": lambda m: dropping(m, a_drop()),
    "learning": learning_rounding,
}


def test_kinds(model):
    weights, activations = quantizers(model, Kind.WEIGHT), quantizers(model, Kind.ACTIVATION)
    assert set(quantizers(model)) == {*weights, *activations} == set(quantizers(model, *Kind))
    assert len(weights) == len(quantized_weights(model)) == 6
    assert len(activations) == 5


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_restores(model, scope):
    with scope(model):
        assert not is_off(model)
        model(images(2))
    assert is_off(model)


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_restores_after_an_exception(model, scope):
    with pytest.raises(KeyError), scope(model):
        raise KeyError
    assert is_off(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, SystemExit])
def test_restores_after_an_interrupt(model, error):
    with pytest.raises(error), quantizing(model), dropping(model, a_drop()), learning_rounding(model):
        raise error
    assert is_off(model)


@pytest.mark.parametrize("outer", SCOPES.values(), ids=SCOPES)
@pytest.mark.parametrize("inner", SCOPES.values(), ids=SCOPES)
def test_nests(model, outer, inner):
    with outer(model):
        before = state(model)
        with inner(model):
            model(images(2))
        if outer is not calibrating or inner is not calibrating:
            assert state(model) == before
        model(images(2))


def test_quantizing_is_what_it_says(model):
    x = images(2)
    with quantizing(model):
        assert all(q.active for q in quantizers(model))
        both = model(x)
        with quantizing(model, weights=False):
            assert not any(q.active for q in quantizers(model, Kind.WEIGHT))
            assert all(q.active for q in quantizers(model, Kind.ACTIVATION))
            activations = model(x)
        with quantizing(model, weights=False, activations=False):
            off = model(x)
        assert torch.equal(model(x), both)
    with quantizing(model, activations=False):
        weights = model(x)
    results = [both, activations, weights, off]
    assert torch.equal(off, model(x))
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_dropping_reaches_activations_only(model):
    drop = a_drop()
    with dropping(model, drop):
        assert all(q.drop is drop for q in quantizers(model, Kind.ACTIVATION))
        assert all(q.drop is None for q in quantizers(model, Kind.WEIGHT))
        inner = a_drop(0.1)
        with dropping(model, inner):
            assert all(q.drop is inner for q in quantizers(model, Kind.ACTIVATION))
        assert all(q.drop is drop for q in quantizers(model, Kind.ACTIVATION))


def test_dropping_everything_is_weights_alone(model):
    x = images(2)
    with quantizing(model), dropping(model, a_drop(0.0)):
        dropped = model(x)
    with quantizing(model, activations=False):
        assert torch.equal(model(x), dropped)


def test_dropping_without_quantizing_does_nothing(model):
    x = images(2)
    expected = model(x)
    with dropping(model, a_drop()):
        assert torch.equal(model(x), expected)


def test_learning_rounding_starts_at_the_weights(model):
    x = images(2)
    with quantizing(model, activations=False):
        nearest = model(x)
        with learning_rounding(model):
            assert all(q.rounding.start is not None for q in quantizers(model, Kind.WEIGHT))
            soft = model(x)
    full = model(x)
    assert (soft - full).abs().mean() < (nearest - full).abs().mean()


def test_calibrating_sees_full_precision(model):
    x = images(4)
    expected = model(x)
    with quantizing(model), calibrating(model):
        assert torch.equal(model(x), expected)


def test_calibrating_needs_images():
    model = quantized(network("residual"), calibrate=False)[0]
    with pytest.raises(ValueError, match="no tensor"), calibrating(model):
        pass
    assert is_off(model)


def test_a_failed_calibration_sets_no_activation_range():
    model = quantized(network("residual"), calibrate=False)[0]
    before = [q.scale.clone() for q in quantizers(model, Kind.ACTIVATION)]
    with pytest.raises(KeyError), calibrating(model):
        model(images())
        raise KeyError
    assert all(torch.equal(q.scale, b) for q, b in zip(quantizers(model, Kind.ACTIVATION), before, strict=True))


def test_calibrating_keeps_the_state_dict_layout():
    model = quantized(network("residual"), calibrate=False)[0]
    before = {key: value.shape for key, value in model.state_dict().items()}
    with calibrating(model):
        model(images())
    assert {key: value.shape for key, value in model.state_dict().items()} == before


def test_calibrating_twice_is_calibrating_once():
    model = quantized(network("residual"))[0]
    once = {key: value.clone() for key, value in model.state_dict().items()}
    with calibrating(model):
        model(images())
    assert all(torch.equal(value, once[key]) for key, value in model.state_dict().items())


def test_calibrating_builds_no_graph(model):
    with calibrating(model):
        assert not model(images(2)).requires_grad


def test_hardening_untouched_rounding_flips_nothing():
    model = quantized(network("residual"))[0]
    roundings = [q.rounding for q in quantizers(model, Kind.WEIGHT)]
    before = [rounding.levels.clone() for rounding in roundings]
    assert harden(model) == 0
    assert all(torch.equal(r.levels, levels) for r, levels in zip(roundings, before, strict=True))


def test_hardening_tells_the_share_that_is_not_at_the_nearest():
    model = quantized(network("residual"))[0]
    roundings = [q.rounding for q in quantizers(model, Kind.WEIGHT)]
    first, *_ = roundings
    before = first.levels.clone()
    with torch.no_grad():
        first.alpha.neg_()
    total = sum(r.levels.numel() for r in roundings)
    share = harden(model)
    assert share == pytest.approx(int((first.levels != before).sum()) / total, rel=1e-6) and share > 0  # of float32
