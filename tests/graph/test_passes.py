"""Graph passes: what a layer really is, whatever way its author wrote it."""

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Network, Sequence1d, bits, conv_bn, filled, images, network, planned
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph
from qdrop.graph.ops import GraphError, operation
from qdrop.graph.split import segments
from qdrop.quantization.spec import Kind

WIDTH = 6


def operations(graph):
    return [operation(node) for node in graph.graph.nodes if node.op == "call_function"]


def weights(plan):
    return [s.layer for s in plan.quantizers if s.kind is Kind.WEIGHT]


def outputs(plan):
    return [s.layer for s in plan.quantizers if s.kind is Kind.ACTIVATION]


def plan_of(*blocks, **kwargs):
    """The plan of a network with these blocks; the graph with quantizers off computes what the model does."""
    model = filled(Network(*blocks, **kwargs))
    with torch.no_grad():
        expected = model(images())
    graph, plan = planned(model, bits(4, 4))
    torch.testing.assert_close(quantize_graph(graph, plan)(images()), expected, rtol=1e-4, atol=1e-4)
    assert not any(p.grad_fn or not p.requires_grad for p in model.parameters())
    return plan


# ---- batch norm ----


def assert_folded(model, x):
    """No BN is left and the output is that of the model, up to the rounding of the folded weights."""
    graph = assert_same(model, x)
    assert not {"batch_norm", "mul", "add"} & set(operations(graph))


def assert_same(model, x):
    """The graph gives what the model does, whatever the batch; no BN is left."""
    graph = capture(model, x)
    other = torch.randn(5, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for given in (x, other):
            torch.testing.assert_close(graph(given), model(given), rtol=1e-4, atol=1e-5)
    assert not any("batch_norm" in name for name in operations(graph))
    return graph


@pytest.mark.parametrize("name", NETWORKS)
def test_no_bn_is_left(name):
    assert not any("batch_norm" in name for name in operations(capture(network(name), images())))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_fold_into_a_convolution(bias, groups, affine):
    layers = [nn.Conv2d(3, 6, 3, stride=2, groups=groups, bias=bias), nn.BatchNorm2d(6, eps=0.1, affine=affine)]
    assert_folded(filled(nn.Sequential(*layers, nn.ReLU())), images())


def test_fold_is_exact_in_double():
    model = filled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=1e-3))).double()
    x = images().double()
    graph = capture(model, x)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-12, atol=1e-12)
    conv, bn = model
    factor = bn.weight / (bn.running_var + 1e-3).sqrt()
    folded = {name: value.detach() for name, value in graph.named_parameters()}
    torch.testing.assert_close(folded["0.weight"], (conv.weight * factor.view(-1, 1, 1, 1)).detach())
    torch.testing.assert_close(folded["0.bias"], ((conv.bias - bn.running_mean) * factor + bn.bias).detach())


def test_fold_in_one_dimension():
    assert_folded(filled(Sequence1d()), torch.randn(4, 3, 12, generator=torch.Generator().manual_seed(0)))


def test_fold_in_three_dimensions():
    model = filled(nn.Sequential(nn.Conv3d(3, 6, 3), nn.BatchNorm3d(6), nn.ReLU()))
    assert_folded(model, torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("bias", [True, False])
def test_fold_into_a_transposed_convolution(bias):
    assert_folded(filled(nn.Sequential(nn.ConvTranspose2d(3, 6, 2, 2, bias=bias), nn.BatchNorm2d(6))), images())


def test_bn_behind_a_grouped_transposed_convolution_is_right():
    assert_same(filled(nn.Sequential(nn.ConvTranspose2d(3, 6, 2, 2, groups=3), nn.BatchNorm2d(6))), images())


@pytest.mark.parametrize("bias", [True, False])
def test_fold_into_a_linear_layer(bias):
    model = filled(nn.Sequential(nn.Linear(7, 5, bias=bias), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)))
    assert_folded(model, torch.randn(6, 7, generator=torch.Generator().manual_seed(0)))


def test_fold_a_functional_batch_norm():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv_bn(3, 6)

        def forward(self, x):
            bn = self.bn
            x = F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.1, 1e-3)
            return F.relu(x)

    assert_folded(filled(Functional()), images())


class NormFirst(nn.Module):
    """A batch norm that follows no layer."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x):
        return self.conv(F.relu(self.norm(x * x)))


class AlsoRaw(nn.Module):
    """What is normalised is also read as it is."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv_bn(WIDTH, WIDTH, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


class CalledTwice(nn.Module):
    """A layer whose second call alone is normalised."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv_bn(WIDTH, WIDTH, 1)

    def forward(self, x):
        return self.norm(self.conv(F.relu(self.conv(x))))


class OverTokens(nn.Module):
    """Normalises tokens, not channels."""

    def __init__(self):
        super().__init__()
        self.linear, self.bn = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(64)

    def forward(self, x):
        return self.bn(self.linear(x.flatten(2).transpose(1, 2))).transpose(1, 2).unflatten(2, (8, 8))


@pytest.mark.parametrize("block", [NormFirst, AlsoRaw, CalledTwice, OverTokens])
def test_bn_that_cannot_be_folded_is_a_scale_and_a_shift(block):
    graph = assert_same(filled(Network(block())), images())
    assert "mul" in operations(graph) and "add" in operations(graph)
    plan_of(block())


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


def test_parameters_in_functions_are_weights_named_after_themselves():
    plan = plan_of(Functional())
    assert weights(plan) == ["stem.0", "body.0.kernel", "body.0.matrix", "head"]
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
    assert next(s for s in plan.quantizers if s.name == "body.0.conv.output_quantizer").node.startswith("div")


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
        values |= dict(zip(part.outputs, results, strict=True))
    assert all(len(value) == len(images()) for value in values.values())
    torch.testing.assert_close(values[parts[-1].outputs[0]], model(images()))


class Product(nn.Module):
    """A matrix that is a parameter, on either side."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        return (torch.relu(self.left @ x).permute(0, 2, 3, 1) @ self.right).permute(0, 3, 1, 2)


def test_a_matrix_is_a_weight_whose_channels_are_those_of_the_product():
    plan = plan_of(Product())
    assert weights(plan) == ["stem.0", "body.0.left", "body.0.right", "head"]
    axes = {spec.layer: spec.ch_axis for spec in plan.quantizers if spec.kind is Kind.WEIGHT}
    assert axes["body.0.left"] == 0 and axes["body.0.right"] == 1


class Positions(nn.Module):
    """Tensors made of sizes: zeros, ones, a range, a mask."""

    def __init__(self):
        super().__init__()
        self.table, self.inner = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        places = torch.arange(tokens.shape[1], device=x.device)
        tokens = tokens + self.table(places) + torch.zeros(tokens.shape[0], 1, WIDTH, device=x.device)
        mask = torch.ones(tokens.shape[1], tokens.shape[1], device=x.device).tril()
        return self.inner(mask @ tokens / tokens.shape[1]).transpose(1, 2).reshape(x.shape)


def test_tensors_made_of_sizes_are_bound_to_no_device():
    graph = assert_same(filled(Network(Positions())), images())
    assert not any("device" in node.kwargs for node in graph.graph.nodes)


class Padding(nn.Module):
    """A mask that tells each image's rows apart, made for as many as there are."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        rows = torch.zeros(x.shape[0], 1, device=x.device, dtype=x.dtype)
        token = torch.cat([rows.expand(-1, WIDTH).unsqueeze(1), x.flatten(2).transpose(1, 2)], 1)
        return self.inner(token)[:, 1:].transpose(1, 2).reshape(x.shape)


def test_a_token_made_for_each_image():
    assert_same(filled(Network(Padding())), images())
    plan_of(Padding())


def test_random_numbers_are_refused():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) + torch.randn(1, 3, 1, 1)

    with pytest.raises(GraphError, match="in 'the model' draws random numbers"):
        capture(filled(Noise()), images(2))


@pytest.mark.parametrize(("channels", "stride"), [(4, (1, 1)), (8, (2, 2))])
def test_skipping_pixels_of_few_channels(channels, stride):
    """They are skipped in front of the convolution: oneDNN is not asked to, and the numbers are the layer's."""
    layer = nn.Conv2d(channels, 6, 1, stride=2)
    x = torch.randn(3, channels, 7, 7, generator=torch.Generator().manual_seed(0))
    graph = capture(filled(layer), x)
    (conv,) = [node for node in graph.graph.nodes if operation(node) == "conv2d"]
    assert tuple(conv.args[3]) == stride if len(conv.args) > 3 else stride == (1, 1)
    assert operations(graph).count("slice") == (2 if stride == (1, 1) else 0)
    torch.testing.assert_close(graph(x), layer(x).detach())
    seen, shown = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = graph(seen), layer(shown)
    by = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(*(torch.autograd.grad(y, z, by) for y, z in ((ours, seen), (theirs, shown))))
