"""Quantizers in a captured graph: where they sit, what they change, and that they change nothing while off."""

import copy

import pytest
import torch
from networks import NETWORKS, bits, filled, images, network, planned, quantized
from torch import nn

from qdrop.config import QuantConfig, WeightQConfig
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph, quantized_weights
from qdrop.graph.plan import make_plan
from qdrop.graph.scopes import calibrating, harden
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.state import quantizers, quantizing

GRANULARITIES = ["block", "layer"]


@pytest.fixture(scope="module", params=NETWORKS)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=GRANULARITIES)
def calibrated(name, request):
    return quantized(network(name), granularity=request.param)


def folded_model(name):
    """The network before it is quantized, its convolutions in the layout that they have after that."""
    return capture(network(name), images(2)).to(memory_format=torch.channels_last)


def test_switched_off_it_is_the_folded_model(name):
    folded = folded_model(name)
    graph, _ = quantized(network(name), calibrate=False)
    with torch.no_grad():
        assert torch.equal(graph(images()), folded(images()))


def test_switched_off_after_calibration(name, calibrated):
    with torch.no_grad():
        assert torch.equal(calibrated[0](images()), folded_model(name)(images()))


def test_every_spec_becomes_a_quantizer(calibrated):
    graph, plan = calibrated
    modules = {path: m for path, m in graph.named_modules() if isinstance(m, FakeQuantize)}
    assert modules.keys() == {spec.name for spec in plan.quantizers}
    assert all(modules[spec.name].spec == spec for spec in plan.quantizers)
    assert len(quantized_weights(graph)) == sum(spec.kind == "weight" for spec in plan.quantizers)


def test_every_quantizer_is_used_once_those_of_activations_in_order(calibrated):
    graph, plan = calibrated
    used = []
    hooks = [q.register_forward_hook(lambda q, x, out: used.append(q.spec.name)) for q in quantizers(graph)]
    with quantizing(graph):
        graph(images(2))
    for hook in hooks:
        hook.remove()
    names = [spec.name for spec in plan.quantizers]
    assert sorted(used) == sorted(names)
    activations = {spec.name for spec in plan.quantizers if spec.kind == "activation"}
    assert [name for name in used if name in activations] == [name for name in names if name in activations]


def test_weights_are_those_of_the_captured_graph(name):
    graph, plan = planned(network(name))
    before = dict(graph.named_parameters())
    quantize_graph(graph, plan)
    after = dict(graph.named_parameters())
    assert all(after[path] is parameter for path, parameter in before.items())


def test_only_alpha_and_scales_can_learn(calibrated):
    learnable = {path.rpartition(".")[2] for path, p in calibrated[0].named_parameters() if p.requires_grad}
    assert learnable == {"alpha", "scale"}


def test_state_dict_rebuilds_the_model(name, calibrated):
    graph, plan = calibrated
    fresh = capture(network(name, seed=1), images(2))
    quantize_graph(fresh, plan)
    fresh.load_state_dict(graph.state_dict())
    with torch.no_grad(), quantizing(graph), quantizing(fresh):
        assert torch.equal(fresh(images()), graph(images()))


def test_deep_copy_is_a_model_of_its_own(calibrated):
    twin = copy.deepcopy(calibrated[0])
    with quantizing(twin), torch.no_grad():
        changed = twin(images())
        assert not any(q.active for q in quantizers(calibrated[0]))
    with quantizing(calibrated[0]), torch.no_grad():
        assert torch.equal(calibrated[0](images()), changed)


def test_a_plan_of_another_network():
    graph, _ = planned(network("residual"))
    _, plan = planned(network("squeeze"))
    with pytest.raises(ValueError, match="another network"):
        quantize_graph(graph, plan)


def test_quantizing_rounds_every_output():
    """At 2 bits each quantized activation takes at most four values."""
    graph, plan = quantized(network("residual"), bits(2, 2, last_a_bit=None))
    seen = {}
    for q in quantizers(graph):
        q.register_forward_hook(lambda q, x, out: seen.__setitem__(q.spec.name, out))
    with quantizing(graph), torch.no_grad():
        graph(images())
    for spec in plan.quantizers:
        rows = seen[spec.name].flatten(1) if spec.kind == "weight" else seen[spec.name].reshape(1, -1)
        assert max(len(row.unique()) for row in rows) <= 2**spec.bit


def test_plan_made_twice_fits(name):
    graph, plan = planned(network(name))
    again = make_plan(capture(network(name), images(1)), bits())
    assert again == plan
    quantize_graph(graph, again)


# ---- one layer ----

LAYERS = {
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8), 0),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 8, 8), 0),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same", padding_mode="reflect"), (2, 4, 8, 8), 0),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 8), 0),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, padding=1), (2, 4, 5, 6, 7), 0),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2), (2, 4, 5, 5), 1),
    "transposed in groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (2, 4, 5, 5), 1),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2), (2, 4, 5), 1),
    "linear": (lambda: nn.Linear(4, 6), (2, 5, 4), 0),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), (2, 4), 0),
}


def one_layer(build, shape, quantizer="AdaRoundFakeQuantize"):
    """A layer, what it is given, its graph with the weight quantized to 2 bits and calibrated."""
    layer = filled(build())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    config = QuantConfig(None, WeightQConfig(quantizer, bit=2), first_w_bit=None, last_w_bit=None)
    graph, _ = planned(layer, config, example=x)
    quantize_graph(graph, make_plan(graph, config))
    with calibrating(graph):
        graph(x)
    return layer, x, graph


@pytest.mark.parametrize(("build", "shape", "axis"), LAYERS.values(), ids=LAYERS)
def test_a_layer_switched_off_is_the_float_layer(build, shape, axis):
    layer, x, graph = one_layer(build, shape)
    assert torch.allclose(graph(x), layer(x), atol=1e-6)
    (found,) = quantized_weights(graph)
    assert found.name == "weight" and torch.equal(found.weight, layer.weight)
    assert found.quantizer.spec.ch_axis == axis and found.quantizer.spec.channels == layer.weight.shape[axis]


@pytest.mark.parametrize(("build", "shape", "axis"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("quantizer", ["AdaRoundFakeQuantize", "FixedFakeQuantize", "LSQFakeQuantize"])
def test_a_layer_computes_with_the_rounded_weight(build, shape, axis, quantizer):
    layer, x, graph = one_layer(build, shape, quantizer)
    (found,) = quantized_weights(graph)
    with quantizing(graph), torch.no_grad():
        ours = graph(x)
        rounded = found.quantizer(found.weight)
    scale, zero_point = found.quantizer.scale.detach(), found.quantizer.zero_point.int()
    nearest = torch.fake_quantize_per_channel_affine(found.weight.detach(), scale, zero_point, axis, 0, 3)
    torch.testing.assert_close(rounded, nearest)
    assert all(1 < len(row.unique()) <= 4 for row in rounded.transpose(0, axis))
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.copy_(rounded)
        torch.testing.assert_close(ours, twin(x))


@pytest.mark.parametrize(("build", "shape", "axis"), LAYERS.values(), ids=LAYERS)
def test_quantizing_changes_nothing_of_the_layer(build, shape, axis):
    before = filled(build()).state_dict()
    layer, _, graph = one_layer(build, shape)
    harden(graph)
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_fixed_rounding_hardens_to_the_nearest():
    assert harden(one_layer(*LAYERS["linear"][:2], "FixedFakeQuantize")[2]) == 0
