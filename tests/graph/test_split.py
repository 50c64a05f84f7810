"""A network cut into units and what lies between: run one after another they are the network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, WIDTH, filled, images, network, quantized
from torch import Tensor, nn

from qdrop.graph.insert import quantized_weights
from qdrop.graph.ops import GraphError
from qdrop.graph.split import reads, segments
from qdrop.quantization.state import quantizers, quantizing


def run(parts, x):
    """The segments in sequence, as the cache feeds them; all values by name."""
    values = {parts[0].inputs[0]: x}
    for part in parts:
        values.update(zip(part.outputs, part.module(*(values[name] for name in part.inputs)), strict=True))
    return values


@pytest.fixture(scope="module", params=NETWORKS)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=["block", "layer"])
def calibrated(name, request):
    return quantized(network(name), granularity=request.param)


@pytest.mark.parametrize("on", [False, True], ids=["off", "quantized"])
def test_segments_in_sequence_are_the_model(calibrated, on):
    graph, plan = calibrated
    parts = segments(graph, plan)
    with quantizing(graph, weights=on, activations=on), torch.no_grad():
        assert torch.equal(run(parts, images())[parts[-1].outputs[-1]], graph(images()))


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
        assert torch.equal(run(parts, images())[parts[-1].outputs[-1]], graph(images()))
        assert all(len(value) == 8 for value in run(parts, images()).values())


def test_values_without_a_row_for_each_image_stay_where_they_are_read():
    model = Gated(stacked, lambda parts, gate: (parts * gate.mean()).mean((0, 3)).repeat(1, 3))
    graph, plan = quantized(filled(model))
    parts = segments(graph, plan)
    with quantizing(graph), torch.no_grad():
        assert torch.equal(run(parts, images())[parts[-1].outputs[-1]], graph(images()))
        assert all(len(value) == 8 for value in run(parts, images()).values())


class Knot(nn.Module):
    """A layer reads what comes from a value without a row for each image, which is read again behind the layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 6, 1), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        parts = stacked(F.relu(self.stem(x)).mean(3))
        gate = torch.sigmoid(self.gate(parts.mean((0, 3))))
        return self.head((parts * gate[None, :, :, None]).mean((0, 3)))


def test_what_would_have_to_be_cut_at_such_a_value_is_refused():
    graph, plan = quantized(filled(Knot()))
    with pytest.raises(GraphError, match=r"need each other's results .*recon\.granularity"):
        segments(graph, plan)


def test_units_are_those_of_the_plan(calibrated):
    graph, plan = calibrated
    parts = segments(graph, plan)
    units = [part for part in parts if part.unit is not None]
    assert [part.unit for part in units] == list(plan.units)
    for part in units:
        weights = len(quantized_weights(part.module))
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
    assert all(id(quantizer) in inside for quantizer in quantizers(graph))
    own = {p.data_ptr() for p in graph.parameters()}
    assert all(p.data_ptr() in own for part in segments(graph, plan) for p in part.module.parameters())


class Twins(nn.Module):
    """A block that gives two tensors, and one that takes them."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, WIDTH, 1), nn.Linear(WIDTH, 2)
        self.fork, self.join = Fork(), Join()

    def forward(self, x):
        return self.head(self.join(*self.fork(F.relu(self.stem(x)))).mean((2, 3)))


class Fork(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)

    def forward(self, x):
        return F.relu(self.a(x)) * 2, F.relu(self.b(x))


class Join(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x, y):
        return F.relu(self.a(x)) + self.b(y)


def test_units_take_and_give_several_tensors():
    graph, plan = quantized(filled(Twins()))
    assert [unit.module for unit in plan.units] == ["stem", "fork", "join", "head"]
    parts = segments(graph, plan)
    by_name = {part.name: part for part in parts}
    assert len(by_name["fork"].outputs) == 2 and set(by_name["join"].inputs) == set(by_name["fork"].outputs)
    with quantizing(graph), torch.no_grad():
        assert torch.equal(run(parts, images())[parts[-1].outputs[-1]], graph(images()))
