"""Rewrites of the traced graph: what a layer really is, whatever way its author wrote it."""

import pytest
import torch
import torch.nn.functional as F
from networks import Network, bits, filled, images, planned
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from qdrop.graph.insert import quantize_graph
from qdrop.graph.split import segments
from qdrop.graph.capture import capture
from qdrop.graph.ops import GraphError
from qdrop.quantization.spec import Kind

WIDTH = 6


def weights(plan):
    return [s.name.removesuffix(".weight_quantizer") for s in plan.quantizers if s.kind is Kind.WEIGHT]


def outputs(plan):
    return [s.name.removesuffix(".output_quantizer") for s in plan.quantizers if s.kind is Kind.ACTIVATION]


def plan_of(*blocks, **kwargs):
    """The plan of a network with these blocks; the graph with quantizers off computes what the model does."""
    model = filled(Network(*blocks, **kwargs))
    with torch.no_grad():
        expected = model(images())
    graph, plan = planned(model, bits(4, 4))
    torch.testing.assert_close(quantize_graph(graph, plan)(images()), expected, rtol=1e-4, atol=1e-4)
    assert not any(p.grad_fn or not p.requires_grad for p in model.parameters())
    return plan


class OwnForward(nn.Conv2d):
    """A convolution that calls the function itself."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """A weight that is standardised in every forward."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: OwnForward(WIDTH, WIDTH, 3, padding=1, groups=2, bias=False),
        lambda: Standardised(WIDTH, WIDTH, 3),
        lambda: parametrizations.weight_norm(nn.Conv2d(WIDTH, WIDTH, 3)),
        lambda: weight_norm(nn.Conv2d(WIDTH, WIDTH, 3)),
    ],
    ids=["own forward", "standardised", "weight norm", "weight norm by hook"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_layer_that_computes_its_weight_from_parameters_is_a_layer_and_takes_its_bn(layer):
    plan = plan_of(nn.Sequential(layer(), nn.BatchNorm2d(WIDTH), nn.ReLU()))
    assert weights(plan) == ["stem.0", "body.0.0", "head"]
    assert outputs(plan) == ["stem.0", "body.0.0"]


class Functional(nn.Module):
    """Parameters of its own in functions; one in each form."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(WIDTH, WIDTH, 3, 3))
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.kernel, padding=1)).permute(0, 2, 3, 1)
        return F.linear(x, weight=self.matrix).permute(0, 3, 1, 2)


def test_parameters_in_functions_become_layers_named_after_their_module():
    plan = plan_of(Functional())
    assert weights(plan) == ["stem.0", "body.0.conv2d_layer", "body.0.linear_layer", "head"]
    assert [unit.module for unit in plan.units] == ["stem.0", "body.0", "head"]


class Mixed(nn.Module):
    """Two kernels side by side, one BN over both."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(WIDTH, 2, 1), nn.Conv2d(WIDTH, WIDTH - 2, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTH)

    def forward(self, x):
        return F.relu(self.bn(torch.cat([self.small(x), self.large(x)], 1)))


def test_bn_over_joined_layers_is_folded_into_each():
    assert weights(plan_of(Mixed())) == ["stem.0", "body.0.small", "body.0.large", "head"]


class Idle(nn.Module):
    """What does nothing in evaluation mode, between a layer and its BN and its activation function."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH, affine=False)
        self.drop, self.idle = nn.Dropout2d(), nn.Identity()

    def forward(self, x):
        x = self.idle(self.bn(F.dropout(self.drop(self.conv(x)), 0.5, self.training)))
        return F.silu(x)


def test_idle_operations_do_not_come_between():
    graph, plan = planned(filled(Network(Idle())))
    assert outputs(plan) == ["stem.0", "body.0.conv"]
    assert next(s for s in plan.quantizers if s.name == "body.0.conv.output_quantizer").node == "silu"
    assert not [node for node in graph.graph.nodes if "drop" in node.name or "idle" in node.name]


class HardSwish(nn.Module):
    """Scaling by numbers and by a constant for each channel; a layout in between."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1)
        self.out = nn.Conv2d(WIDTH, WIDTH, 1)
        self.gamma = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        gate = F.relu6(self.conv(x) + 3) / 6
        return x + (self.out(gate).permute(0, 2, 3, 1) * self.gamma).permute(0, 3, 1, 2)


def test_arithmetic_with_constants_is_part_of_what_it_follows():
    plan = plan_of(HardSwish())
    assert outputs(plan) == ["stem.0", "body.0.conv", "body.0.add"]
    assert next(s for s in plan.quantizers if s.name == "body.0.conv.output_quantizer").node == "truediv"


class Prepared(nn.Module):
    """Normalises the image itself, and takes more than the image."""

    def __init__(self):
        super().__init__()
        self.network = Network()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])

    def forward(self, x, mask=None, sizes=(1, 2), *, flag=False, **kwargs):
        x = (x - self.mean) / 0.25
        if mask is not None or flag:
            x = x * mask
        return self.network(x)


def test_image_is_not_quantized_where_it_is_normalised_and_defaults_stay():
    graph, plan = planned(filled(Prepared()))
    assert outputs(plan) == ["network.stem.0"]
    assert len(graph.graph.find_nodes(op="placeholder")) == 1


class Halves(nn.Module):
    """Chunks made between units, read by different units; a size that several blocks read."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH // 2, WIDTH, 3, padding=1), nn.Conv2d(WIDTH // 2, WIDTH, 3, stride=2)

    def forward(self, x):
        halves, size = F.max_pool2d(x, 1).chunk(2, 1), x.shape[2:]
        return self.a(halves[0]) + F.interpolate(self.b(halves[1]), size)


def test_segments_pass_tensors_only():
    model = filled(Network(Halves()))
    graph, plan = planned(model, granularity="layer")
    parts = segments(quantize_graph(graph, plan), plan)
    values = {"x": images()}
    for part in parts:
        results = part.module(*(values[name] for name in part.inputs))
        results = results if isinstance(results, tuple) else (results,)
        values |= dict(zip(part.outputs, results, strict=True))
    assert all(len(value) == len(images()) for value in values.values())
    torch.testing.assert_close(values[parts[-1].outputs[0]], model(images()))


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        return (x.permute(0, 2, 3, 1) @ self.matrix).permute(0, 3, 1, 2)


class Dynamic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH * WIDTH, 1)

    def forward(self, x):
        return F.conv2d(x, self.conv(x).mean((0, 2, 3)).reshape(WIDTH, WIDTH, 1, 1))


@pytest.mark.parametrize(("block", "name"), [(Product, "matmul"), (Dynamic, "conv2d")])
def test_weight_that_no_layer_holds_is_refused(block, name):
    with pytest.raises(GraphError, match=f"{name} in 'body.0' takes a weight as an argument"):
        planned(filled(Network(block())))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class OverTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.linear, self.bn = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 4), nn.BatchNorm1d(16)

    def forward(self, x):
        return self.bn(self.linear(self.patches(x).flatten(2).transpose(1, 2)))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (TwoInputs(), "cannot trace TwoInputs: .*missing 1 required positional argument: 'y'"),
        (OverTokens(), r"cannot fold 'bn' \(BatchNorm1d\): it normalises something else than the channels"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(model, reason):
    with pytest.raises(GraphError, match=reason):
        trace(model, images(2))
