import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from networks import (
    NETWORKS,
    WIDTH,
    Network,
    Residual,
    Sequence1d,
    conv_bn,
    filled,
    images,
    network,
    planned,
)
from torch import nn

from qdrop.graph.ops import GraphError, check_supported, trace
from qdrop.quantization.ops import owner


def module_types(graph):
    return {type(graph.get_submodule(n.target)) for n in graph.graph.nodes if n.op == "call_module"}


def assert_folded(model, x):
    """No BN is left and the output is that of the model, up to the rounding of the folded weights."""
    with torch.no_grad():
        expected = model(x)
    graph = trace(model, x)
    assert not any(issubclass(t, nn.modules.batchnorm._BatchNorm) for t in module_types(graph))
    assert not any(n.target is F.batch_norm for n in graph.graph.nodes)
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)
    other = torch.randn(5, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(graph(other), model(other), rtol=1e-4, atol=1e-5)


# ---- what comes out ----


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_the_same(name):
    assert_folded(network(name), images())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_fold_into_a_convolution(bias, groups, affine):
    layers = [nn.Conv2d(3, 6, 3, stride=2, groups=groups, bias=bias), nn.BatchNorm2d(6, eps=0.1, affine=affine)]
    assert_folded(filled(nn.Sequential(*layers, nn.ReLU())), images())


def test_fold_is_exact_in_double():
    model = filled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=1e-3))).double()
    x = images().double()
    with torch.no_grad():
        torch.testing.assert_close(trace(model, x)(x), model(x), rtol=1e-12, atol=1e-12)
    conv, bn = model
    factor = bn.weight / (bn.running_var + 1e-3).sqrt()
    folded = trace(model, x).get_submodule("0")
    torch.testing.assert_close(folded.weight, (conv.weight * factor.view(-1, 1, 1, 1)).detach())
    torch.testing.assert_close(folded.bias, ((conv.bias - bn.running_mean) * factor + bn.bias).detach())


def test_fold_in_one_dimension():
    assert_folded(filled(Sequence1d()), torch.randn(4, 3, 12, generator=torch.Generator().manual_seed(0)))


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


def test_fold_where_the_user_left_training_on():
    model = network("residual").train()
    expected = copy.deepcopy(model).eval()(images())
    torch.testing.assert_close(trace(model, images())(images()), expected.detach(), rtol=1e-4, atol=1e-5)


def test_shapes_of_all_nodes():
    graph = trace(network("residual"), images(2))
    shapes = {n.name: tuple(n.meta["tensor_meta"].shape) for n in graph.graph.nodes if n.op == "call_module"}
    assert shapes["stem_0"] == (2, WIDTH, 8, 8) and shapes["head"] == (2, 5)


def test_nodes_know_their_module():
    graph = trace(network("residual"), images(2))
    owners = {n.name: owner(n) for n in graph.graph.nodes}
    assert owners["add"] == "body.0" and owners["add_1"] == "body.1"
    assert owners["stem_0"] == "stem" and owners["head"] == "" and owners["mean"] == ""


# ---- in place ----


class InPlace(nn.Module):
    """Every way to write over an activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu6, self.silu = nn.Conv2d(3, 3, 1), nn.ReLU6(inplace=True), nn.SiLU(inplace=True)

    def forward(self, x):
        x = self.conv(x)
        y = x * 1.0
        y += x
        y -= 0.5 * x
        y *= x
        y = F.relu_(y)
        y = F.leaky_relu(y, 0.1, inplace=True)
        y = F.elu_(F.hardtanh_(F.leaky_relu_(y, 0.5)))
        y = torch.relu_(y).add_(x).clamp_(-3, 3).mul_(2)
        return self.silu(self.relu6(F.hardtanh(y, inplace=True)))


class Overwritten(nn.Module):
    """In-place work whose result is read under the name of its input."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv(x)
        F.relu_(y)
        z = y - 0.5
        return self.relu(z) * 2 + z  # the shortcut of a pre-activation block reads what is rectified by now


def test_what_is_overwritten_is_read_as_it_is_then():
    model = filled(Overwritten())
    with torch.no_grad():
        expected = model(images())
    torch.testing.assert_close(trace(model, images())(images()), expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_in_place():
    model = filled(InPlace())
    with torch.no_grad():
        expected = model(images())
    graph = trace(model, images())
    for node in graph.graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        assert node.op in ("call_module", "placeholder", "output") or not name.endswith("_"), name
        assert node.target not in (operator.iadd, operator.isub, operator.imul)
        assert not node.kwargs.get("inplace")
        if node.op == "call_module":
            assert not getattr(graph.get_submodule(node.target), "inplace", False)
    torch.testing.assert_close(graph(images()), expected, rtol=1e-4, atol=1e-5)
    values = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n):
            values[n] = super().run_node(n)
            if isinstance(values[n], torch.Tensor):
                kept[n] = values[n].detach().clone()
            return values[n]

    kept = {}
    Recorder(graph).run(images())
    assert all(torch.equal(values[n], kept[n]) for n in kept)  # no later node wrote over an earlier one's value


# ---- the user's model ----


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_is_left_as_it_was(name, training):
    model = network(name).train(training)
    next(model.parameters()).requires_grad_(False)
    list(model.modules())[-1].train(not training)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = {path: (id(m), type(m), m.training, getattr(m, "inplace", None)) for path, m in model.named_modules()}
    parameters = {path: (id(p), p.requires_grad, p.grad) for path, p in model.named_parameters()}
    planned(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    after = {path: (id(m), type(m), m.training, getattr(m, "inplace", None)) for path, m in model.named_modules()}
    assert after == modules
    assert {path: (id(p), p.requires_grad, p.grad) for path, p in model.named_parameters()} == parameters


class Shifted(nn.Module):
    """Subtracts a tensor made in `forward`, which `torch.fx` keeps in the model it traces."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))


def test_tensors_made_in_forward_are_not_left_in_the_model():
    model = filled(Shifted())
    before = set(vars(model))
    graph = trace(model, images())
    assert set(vars(model)) == before
    torch.testing.assert_close(graph(images()), model(images()))


def test_the_model_still_trains_after_tracing():
    model = network("residual")
    trace(model, images())
    model.train()(images()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_unfolded_weights_are_shared_and_frozen():
    model = network("residual")
    graph = trace(model, images())
    head = graph.get_submodule("head")
    assert head.weight.data_ptr() == model.head.weight.data_ptr()
    assert not any(p.requires_grad for p in graph.parameters())
    assert graph.get_submodule("stem.0").weight.data_ptr() != model.stem[0].weight.data_ptr()


def test_the_model_is_restored_after_a_failure():
    model = filled(Branches()).train()
    with pytest.raises(GraphError):
        trace(model, images())
    assert all(m.training for m in model.modules())


# ---- what is refused, and how ----


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = DataDependent()

    def forward(self, x):
        return self.block(x)


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class NormFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(self.norm(F.relu(x)))


class AlsoRaw(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv_bn(3, 3)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


class Shared(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()

    def forward(self, x):
        return self.norm(self.conv(F.relu(self.conv(x))))


class OnTheFly(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3 * 3, 1)

    def forward(self, x):
        weight = self.conv(x).mean((0, 2, 3)).reshape(3, 3, 1, 1)
        return F.conv2d(x, weight)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 4, 1), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0]


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, x):
        return self.up(self.conv(x))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x), x


class BatchSize(nn.Module):
    """Computes something else once traced: the noise is a new one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) + torch.randn(1, 3, 1, 1)


REFUSED = {
    "data-dependent": (Branches, ["'block' (DataDependent)", "cannot trace", "control flow"]),
    "BN first": (
        lambda: Network(NormFirst(), width=3),
        ["'body.0.norm' (BatchNorm2d)", "relu in 'body.0'", "not a conv"],
    ),
    "also read raw": (AlsoRaw, ["'norm' (BatchNorm2d)", "'conv' (Conv2d)", "also read unnormalised"]),
    "shared": (Shared, ["'conv' (Conv2d)", "called more than once"]),
    "shared with BN": (lambda: Shared(norm=True), ["'norm' (BatchNorm2d)", "'conv' (Conv2d)", "called more than once"]),
    "weight on the fly": (OnTheFly, ["conv2d in 'the model'", "takes a weight as an argument"]),
    "attention": (Attention, ["'attention' (MultiheadAttention)", "Conv2d, Conv1d, Linear"]),
    "transposed": (Transposed, ["'up' (ConvTranspose2d)", "Conv2d, Conv1d, Linear"]),
    "two outputs": (Pair, ["returns tuple", "one tensor"]),
    "random": (BatchSize, ["differs from the model by"]),
    "untracked BN": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
        ["'1'", "without running statistics"],
    ),
    "no layer": (lambda: nn.ReLU(), ["no convolution or linear layer"]),
}


@pytest.mark.parametrize(("build", "parts"), REFUSED.values(), ids=REFUSED)
def test_refused_with_module_and_reason(build, parts):
    with pytest.raises(GraphError) as caught:
        planned(filled(build()))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_weights_that_are_not_finite():
    model = network("residual")
    with torch.no_grad():
        model.body[0].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(GraphError, match="not finite"):
        trace(model, images())


def test_supported_networks_pass():
    for name in NETWORKS:
        check_supported(trace(network(name), images(2)))


def test_a_block_used_twice_is_refused():
    block = Residual()
    with pytest.raises(GraphError, match=r"body.*called more than once"):
        planned(filled(Network(block, block)))
