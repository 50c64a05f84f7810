import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, bits, filled, images, network, planned, quantized
from torch import Tensor, nn

from qdrop.graph.insert import quantize_graph, reads, segments
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.graph.capture import capture
from qdrop.graph.ops import GraphError
from qdrop.graph.plan import make_plan
from qdrop.quantization.state import quantized_modules, quantizers, quantizing

GRANULARITIES = ["block", "layer"]


def run(parts, x):
    """The segments in sequence, as the cache feeds them; the last one's output."""
    values = {parts[0].inputs[0]: x}
    for part in parts:
        out = part.module(*(values[name] for name in part.inputs))
        outs = out if isinstance(out, tuple) else (out,)
        values.update(zip(part.outputs, outs, strict=True))
    return values[parts[-1].outputs[-1]]


@pytest.fixture(scope="module", params=NETWORKS)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=GRANULARITIES)
def calibrated(name, request):
    return quantized(network(name), granularity=request.param)


def folded_model(name):
    """The network before it is quantized, its convolutions in the layout that they have after that."""
    return trace(network(name), images(2)).to(memory_format=torch.channels_last)


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
    assert len(quantized_modules(graph)) == sum(spec.kind == "weight" for spec in plan.quantizers)


def test_every_quantizer_is_used_once_in_order(calibrated):
    graph, plan = calibrated
    used = []
    hooks = [q.register_forward_hook(lambda q, x, out: used.append(q.spec.name)) for q in quantizers(graph)]
    with quantizing(graph):
        graph(images(2))
    for hook in hooks:
        hook.remove()
    assert used == [spec.name for spec in plan.quantizers]


@pytest.mark.parametrize("on", [False, True], ids=["off", "quantized"])
def test_segments_in_sequence_are_the_model(calibrated, on):
    graph, plan = calibrated
    parts = segments(graph, plan)
    with quantizing(graph, weights=on, activations=on), torch.no_grad():
        assert torch.equal(run(parts, images()), graph(images()))


class Gated(nn.Module):
    """Values without a row for each image, read again after a unit on whole images."""

    def __init__(self, split: Callable[[Tensor], Any], join: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 6), nn.Linear(6, 2)
        self.split, self.join = split, join

    def forward(self, x):
        x = F.relu(self.stem(x)).mean(3)  # [N, 6, H]
        parts = self.split(x)
        return self.head(self.join(parts, torch.sigmoid(self.gate(x.mean(2)))))


def stacked(x):
    return x.reshape(-1, 3, 2, x.shape[2]).permute(1, 0, 2, 3)  # [3, N, 2, H]


def joined(parts, gate):
    return torch.cat([part.mean(2) for part in (parts[0], parts[1], parts[2])], 1) * gate


@pytest.mark.parametrize("split", [stacked, lambda x: x.chunk(3, 1)], ids=["stacked", "chunks"])
def test_what_is_taken_of_a_value_without_a_row_for_each_image_is_not_taken_later(split):
    graph, plan = quantized(filled(Gated(split, joined)))
    parts = segments(graph, plan)
    with quantizing(graph), torch.no_grad():
        assert torch.equal(run(parts, images()), graph(images()))
    assert all(len(value) == 8 for value in (run(parts[:n], images()) for n in range(1, len(parts) + 1)))


def test_values_without_a_row_for_each_image_are_not_passed_on():
    model = Gated(stacked, lambda parts, gate: (parts * gate.mean()).mean((0, 3)).repeat(1, 3))
    graph, plan = quantized(filled(model))
    with pytest.raises(GraphError, match=r"is not one tensor with a row for each image: .*recon\.granularity"):
        segments(graph, plan)


def test_a_unit_takes_and_gives_one_tensor(calibrated):
    graph, plan = calibrated
    parts = segments(graph, plan)
    units = [part for part in parts if part.unit is not None]
    assert [part.unit for part in units] == list(plan.units)
    for part in units:
        assert len(part.inputs) == len(part.outputs) == 1
        weights = len(quantized_modules(part.module))
        assert weights == part.unit.weights
        assert len(quantizers(part.module)) == weights + part.unit.activation_quantizers


def test_segments_read_what_earlier_ones_wrote(calibrated):
    parts = segments(*calibrated)
    known = set(parts[0].inputs)
    for part in parts:
        assert set(part.inputs) <= known
        known |= set(part.outputs)


def test_last_readers(calibrated):
    parts = segments(*calibrated)
    last = reads(parts)
    for value, index in last.items():
        assert value in parts[index].inputs
        assert not any(value in part.inputs for part in parts[index + 1 :])
    assert parts[-1].outputs[-1] not in last


def test_layers_and_quantizers_are_shared(name, calibrated):
    graph, plan = calibrated
    inside = {id(m) for part in segments(graph, plan) for m in part.module.modules()}
    assert all(id(m) in inside for m in [*quantizers(graph), *quantized_modules(graph)])
    own = {p.data_ptr() for p in graph.parameters()}
    assert all(p.data_ptr() in own for part in segments(graph, plan) for p in part.module.parameters())


def test_weights_are_those_of_the_traced_graph(name):
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
    fresh = trace(network(name, seed=1), images(2))
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
    again = make_plan(trace(network(name), images(1)), bits())
    assert again == plan
    quantize_graph(graph, again)
