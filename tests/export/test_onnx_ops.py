"""Every operation that can be written, against PyTorch, and what cannot."""

import inspect

import onnx
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, bits, filled, images, network, quantized
from onnx_runs import exported
from torch import nn

from qdrop.config import ActivationQConfig, QuantConfig, WeightQConfig
from qdrop.export import Container, ExportError, export_onnx
from qdrop.export.emitter import Emitter, OnnxGraph
from qdrop.export.registry import FUNCTIONS, NOTHING, RESHAPES, UNARY
from qdrop.export.registry import MODULES as REGISTRY
from qdrop.models import build_model
from qdrop.graph.capture import capture
from qdrop.quantization.state import quantizing

pytestmark = pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax")


class Apply(nn.Module):
    """A network that is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


OPERATIONS = {
    "relu": F.relu, "relu6": F.relu6, "hardtanh": F.hardtanh, "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_min": lambda x: torch.clamp_min(x, 0.1), "clip": lambda x: torch.clip(x, max=0.2),
    "clamp by a tensor": lambda x: torch.clamp(x, -x.mean((2, 3), True), x.mean(1, True).abs()),
    "leaky_relu of a whole number": lambda x: F.leaky_relu(x, 2), "implicit softmax": lambda x: F.softmax(x),
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": F.silu, "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid, "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu, "gelu": F.gelu, "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "softplus": F.softplus,
    "mish": F.mish, "softsign": F.softsign, "exp": torch.exp, "square": torch.square, "pow": lambda x: x**2,
    "add": lambda x: x + x.abs(), "add alpha": lambda x: torch.add(x, x.abs(), alpha=0.5), "radd": lambda x: 1 + x,
    "sub": lambda x: 1 - x, "mul": lambda x: 2 * x * x, "div": lambda x: 1 / (x.abs() + 1), "neg": lambda x: -x,
    "matmul": lambda x: x @ x.transpose(-1, -2), "softmax": lambda x: x.softmax(1),
    "layer norm": lambda x: F.layer_norm(x, (8,)),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1), "max pool ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "avg pool": lambda x: F.avg_pool2d(x, 2), "avg pool pad": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg pool inside": lambda x: F.avg_pool2d(x, (3, 2), 2, (1, 0), count_include_pad=False),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1), "windows": lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, 1), "mean": lambda x: x.mean((2, 3)),
    "mean keep": lambda x: x.mean([-1, -2], keepdim=True), "mean one": lambda x: x.mean(1), "sum": lambda x: x.sum(-1),
    "flatten": lambda x: x.flatten(1), "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.shape[0], 3, 4, 2, 8), "merge": lambda x: x.reshape(-1, 8, 8),
    "squeeze": lambda x: x.mean(1, keepdim=True).squeeze(1), "unsqueeze": lambda x: x.unsqueeze(-1),
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous(), "transpose": lambda x: torch.transpose(x, 1, -1),
    "cat": lambda x: torch.cat([x, x.abs()], 1), "chunk": lambda x: torch.cat(x.chunk(2, 2)[::-1], 2),
    "split": lambda x: x.split([1, 2], dim=1)[1], "slice": lambda x: x[:, :, ::2, 1:-1], "index": lambda x: x[:, -1],
    "ellipsis": lambda x: x[..., None, 2:5], "pad": lambda x: F.pad(x, (1, 2, 0, 0, 1, 1), value=0.5),
    "reflect": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), "channel pad": lambda x: F.pad(x, (0,) * 4 + (2, 2)),
    "shuffle": lambda x: F.channel_shuffle(torch.cat([x, -x], 1), 2),
    "pixel shuffle": lambda x: F.pixel_shuffle(torch.cat([x, -x, x, x.abs()], 1), 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2), "dropout": lambda x: F.dropout(x, 0.5, False),
    "bilinear": lambda x: F.interpolate(x, size=(12, 5), mode="bilinear"),
    "corners": lambda x: F.interpolate(x, size=(12, 5), mode="bilinear", align_corners=True),
}  # fmt: skip

MODULES = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.2, 0.3), nn.LeakyReLU(0.3), nn.PReLU(3, 0.4), nn.ELU(0.5), nn.SELU(),
    nn.ELU(1), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Softsign(), nn.Hardswish(),
    nn.Hardsigmoid(), nn.Softmax(1), nn.LayerNorm(8), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True),
    nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(4), nn.ConstantPad2d(1, 0.5), nn.ZeroPad2d((1, 0, 2, 1)),
    nn.Flatten(), nn.ChannelShuffle(3), nn.Upsample(scale_factor=2), nn.Conv2d(3, 6, (3, 5), 2, (1, 0), (2, 1), 3),
    nn.Conv2d(3, 2, 3, padding="same"), nn.Linear(8, 5), nn.Sequential(nn.Flatten(), nn.Linear(192, 3, bias=False)),
]  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_function(name, tmp_path):
    model = trace(Apply(OPERATIONS[name]), images(4))
    assert torch.allclose(exported(model, images(4), tmp_path, "int8"), model(images(4)), atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(
    "settings",
    [
        {"scale_factor": 1.7}, {"scale_factor": 0.6}, {"scale_factor": (1.7, 2)}, {"size": (5, 9)}, {"size": 16},
        {"scale_factor": 1.7, "recompute_scale_factor": True},
    ],
    ids=str,
)  # fmt: skip
def test_resizing(mode, settings, tmp_path):
    """Not only the sizes: PyTorch places the pixels by the factor, where it was given one."""
    model = trace(nn.Sequential(nn.Upsample(mode=mode, **settings)), images(4))
    assert torch.allclose(exported(model, images(4), tmp_path, "int8"), model(images(4)), atol=1e-5)


@pytest.mark.parametrize(
    "mode, side, settings",
    [
        ("nearest", 14, {"size": 4}),  # 2 * (14 / 4) is 7, and 2 / (4 / 14) in float32 below it
        ("nearest", 18, {"scale_factor": 0.6}),
        ("nearest", 5, {"scale_factor": 2.1}),  # PyTorch doubles where the size does, whatever the factor
        ("bilinear", 30, {"scale_factor": 2.1}),  # 63 pixels, and 62 in float32
    ],
    ids=str,
)
def test_resizing_does_not_depend_on_how_a_factor_is_rounded(mode, side, settings, tmp_path):
    x = torch.randn(2, 1, side, side)
    model = trace(Apply(lambda x: F.interpolate(x, mode=mode, **settings)), x)
    assert torch.allclose(exported(model, x, tmp_path, "native"), model(x), atol=1e-4)


def test_whole_factors_stay_one_operator(tmp_path):
    model = trace(Apply(OPERATIONS["nearest"]), images(4))
    proto = onnx.load(export_onnx(model, images(4), tmp_path / "model.onnx"))
    assert [node.op_type for node in proto.graph.node] == ["Resize", "Identity"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_module(module, tmp_path):
    model = trace(nn.Sequential(module), images(4))
    with torch.no_grad():
        assert torch.allclose(exported(model, images(4), tmp_path, "native"), model(images(4)), atol=1e-5)


def test_one_dimension(tmp_path):
    model = trace(nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU()), torch.randn(2, 3, 8))
    x = torch.randn(5, 3, 8)
    assert torch.allclose(exported(model, x, tmp_path, "int8"), model(x), atol=1e-5)


@pytest.mark.parametrize("container", ["native", "int8"])
@pytest.mark.parametrize("widths", [(2, 2), (2, 4), (3, 3), (4, 8)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_quantized_blocks(name, widths, container, tmp_path):
    model, _ = quantized(network(name), bits(*widths))
    with quantizing(model), torch.no_grad():
        expected = model(images(16))
        written = exported(model, images(16), tmp_path, container, optimize=False)
        fused = exported(model, images(16), tmp_path, container)
    step = expected.max() - expected.min()
    assert ((written - expected).abs() > 1e-4 * step).float().mean() < 0.05
    assert ((fused - expected).abs() > 0.1 * step).float().mean() < 0.1


class Tokens(nn.Module):
    """Fully connected layers on tokens `[N, T, C]`."""

    def __init__(self, width):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, width), nn.Linear(width, 5)

    def forward(self, x):
        x = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
        return self.head(F.relu(self.inner(x)).mean(1))


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("container", ["native", "int8"])
@pytest.mark.parametrize("bit", [2, 3, 4])
@pytest.mark.parametrize("width", [10, 16])
def test_a_fully_connected_layer_on_tokens(width, bit, container, per_channel, tmp_path):
    """With ONNX Runtime's fusions, whether or not 2-bit rows fill whole bytes."""
    activations = ActivationQConfig(bit=8, ch_axis=1 if per_channel else -1)
    model, _ = quantized(filled(Tokens(width)), QuantConfig(activations, WeightQConfig(bit=bit)))
    with quantizing(model), torch.no_grad():
        expected = model(images(16))
        written = exported(model, images(16), tmp_path, container)
    spread = expected.max() - expected.min()
    assert (written - expected).abs().max() < (1e-4 if container == "native" else 2e-2) * spread


class FunctionalPReLU(nn.Module):
    """The function, with slopes that are read, or computed, in the graph."""

    def __init__(self, slopes, negative):
        super().__init__()
        self.weight, self.negative = nn.Parameter(torch.linspace(0.1, 0.4, slopes)), negative

    def forward(self, x):
        return F.prelu(x, -self.weight if self.negative else self.weight)


@pytest.mark.parametrize("negative", [False, True], ids=["read", "computed"])
@pytest.mark.parametrize("slopes", [1, 3])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 6)], ids=len)
def test_prelu_with_slopes_of_the_graph(shape, slopes, negative, tmp_path):
    x = torch.randn(shape)
    model = trace(FunctionalPReLU(slopes, negative), x)
    assert torch.allclose(exported(model, x, tmp_path, "int8"), model(x), atol=1e-6)


@pytest.mark.parametrize("kind, size", [("timm:mobilenetv3_small_050", 64), ("torchvision:shufflenet_v2_x0_5", 64),
                                        ("torchvision:squeezenet1_1", 64), ("digits_resnet", 8)])  # fmt: skip
def test_common_networks(kind, size, tmp_path):
    x = torch.randn(3, 1 if kind == "digits_resnet" else 3, size, size)
    model = trace(build_model(kind), x)
    with torch.no_grad():
        expected = model(x)
    assert torch.allclose(exported(model, x, tmp_path, "int8"), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x: torch.cumsum(x, 1), r"cumsum.*calls cumsum, which is none of .*conv2d"),
        (lambda x: x * x.size(0), r"mul.*depends on the size of the batch"),
        (lambda x: F.adaptive_avg_pool2d(x, 3), r"adaptive_avg_pool2d.*only whole windows"),
        (lambda x: F.interpolate(x, size=(4, 4), mode="bicubic"), r"mode=bicubic"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), r"rounding_mode=floor"),
        (lambda x: x.chunk(2, 0)[0], r"splits the batch"),
        (lambda x: F.interpolate(x, size=(x.size(0), 4)), r"interpolate.*depends on the batch"),
        (lambda x: F.softplus(x, beta=2), r"softplus.*beta=2"),
        (lambda x: F.softplus(x, threshold=1), r"softplus.*threshold=1"),
        (lambda x: F.softmax(x.mean(1)), r"softmax over the batch"),
    ],
)
def test_what_cannot_be_written_is_named(function, reason, tmp_path):
    graph = trace(Apply(function), images(4))
    with pytest.raises(ExportError, match=reason):
        export_onnx(graph, images(4), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [TypeError, KeyError, ValueError, AttributeError])
def test_a_handler_that_fails_names_its_node(kind, monkeypatch, tmp_path):
    def handler(e, input):
        raise kind("unexpected")

    monkeypatch.setitem(FUNCTIONS, "square", handler)
    with pytest.raises(ExportError, match=rf"square.*not supported \({kind.__name__}: '?unexpected") as caught:
        export_onnx(trace(Apply(torch.square), images(4)), images(4), tmp_path / "model.onnx")
    assert type(caught.value.__cause__) is kind


class First(nn.Module):
    """The first of what a pooling returns."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        return self.pool(x)[0]


@pytest.mark.parametrize(
    "model, reason",
    [
        (nn.Sequential(nn.Softplus(beta=2)), r"'0' \(Softplus\) has beta=2"),
        (nn.Sequential(nn.AvgPool2d(2, divisor_override=3)), r"'0' \(AvgPool2d\) has divisor_override=3"),
        (First(nn.MaxPool2d(2, return_indices=True)), r"'pool' \(MaxPool2d\) returns indices"),
        (First(nn.AdaptiveMaxPool2d(1, return_indices=True)), r"'pool' \(AdaptiveMaxPool2d\) returns indices"),
    ],
)
def test_settings_of_a_module_that_cannot_be_written_are_named(model, reason, tmp_path):
    with pytest.raises(ExportError, match=reason):
        export_onnx(trace(model, images(4)), images(4), tmp_path / "model.onnx")


PASSED_ON = {nn.PReLU: {"weight"}, nn.LayerNorm: {"weight", "bias"}, nn.ZeroPad2d: {"value"}}
"""Attributes that a handler gets and that are no arguments of the module's constructor."""
NOT_PASSED_ON = {"inplace", "device", "dtype", "init", "num_parameters", "elementwise_affine", "bias", "start_dim"}
NOT_PASSED_ON |= {"end_dim", "dim", "unflattened_size"}
"""Arguments of constructors that make no difference to what is computed, or that shapes and parameters tell."""


@pytest.mark.parametrize("kind", REGISTRY, ids=lambda kind: kind.__name__)
def test_no_setting_of_a_module_is_forgotten(kind):
    settings = set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"}
    settings -= {"min_value", "max_value"}  # old names of Hardtanh's
    passed = set(REGISTRY[kind][1]) - PASSED_ON.get(kind, set())
    assert passed <= settings and settings - passed <= NOT_PASSED_ON


def test_every_function_is_written_in_one_way():
    tables = [set(FUNCTIONS), set(UNARY), RESHAPES, NOTHING]
    assert sum(map(len, tables)) == len(set.union(*tables))


def test_a_padding_mode_that_cannot_be_written_is_named(tmp_path):
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    with pytest.raises(ExportError, match=r"'0' \(Conv2d\) has padding_mode=circular"):
        export_onnx(trace(nn.Sequential(layer), images(4)), images(4), tmp_path / "model.onnx")


def test_names_of_nodes_are_their_own_however_many_one_node_becomes():
    graph = OnnxGraph(Container.NATIVE)
    (node,) = trace(nn.Sequential(nn.ReLU()), images(4)).graph.find_nodes(op="call_module")
    names = [Emitter(graph, node, ()).add("Relu", "images") for _ in range(40)]
    assert names[:2] == ["_0/Relu", "_0/Relu#1"] and len(set(names)) == 40


def test_a_module_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"'0' \(LPPool2d\) is none of the modules.*AvgPool2d"):
        export_onnx(trace(nn.Sequential(nn.LPPool2d(2, 2)), images(4)), images(4), tmp_path / "model.onnx")
