"""Every operation that can be written, against PyTorch, and what cannot."""

from functools import partial
from itertools import product

import onnx
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, bits, filled, images, network, quantized
from onnx_runs import exported, outputs
from torch import nn

from qdrop.config import ActivationQConfig, LayerBits, QuantConfig
from qdrop.export import ExportError, export_onnx
from qdrop.graph.capture import capture
from qdrop.models import build_model
from qdrop.quantization.spec import Kind
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
    "avg pool divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False, divisor_override=2),
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


RESIZINGS = [
    (mode, settings)
    for mode in ("nearest", "bilinear")
    for settings in (
        {"scale_factor": 1.7}, {"scale_factor": 0.6}, {"scale_factor": (1.7, 2)}, {"size": (5, 9)}, {"size": 16},
        {"scale_factor": 1.7, "recompute_scale_factor": True},
    )
]  # fmt: skip
ROUNDED_FACTORS = [
    ("nearest", 14, {"size": 4}),  # 2 * (14 / 4) is 7, and 2 / (4 / 14) in float32 below it
    ("nearest", 18, {"scale_factor": 0.6}),
    ("nearest", 5, {"scale_factor": 2.1}),  # PyTorch doubles where the size does, whatever the factor
    ("bilinear", 30, {"scale_factor": 2.1}),  # 63 pixels, and 62 in float32
]


class PReLU(nn.Module):
    """The function on `[N, 3, ...]`, with slopes that are read, or computed, in the graph."""

    def __init__(self, axes, slopes, negative):
        super().__init__()
        self.weight, self.negative = nn.Parameter(torch.linspace(0.1, 0.4, slopes)), negative
        self.axes = axes

    def forward(self, x):
        return F.prelu(x.flatten(self.axes - 1)[:, :3], -self.weight if self.negative else self.weight)


class Each(nn.Module):
    """A network that applies each of many modules to its input."""

    def __init__(self, parts):
        super().__init__()
        self.names, self.parts = list(parts), nn.ModuleList(parts.values())

    def forward(self, x):
        return {name: part(x) for name, part in zip(self.names, self.parts, strict=True)}


def resized(x, mode, settings, side=8):
    """`x` `[N, C, 8, 8]`, made `side` pixels large by repeating it, resized."""
    return F.interpolate(x.repeat(1, 1, 4, 4)[:, :, :side, :side], mode=mode, **settings)


ROUNDED = {f"{m} of {n}, {s}": Apply(partial(resized, mode=m, settings=s, side=n)) for m, n, s in ROUNDED_FACTORS}
PARTS = {
    **{name: Apply(function) for name, function in OPERATIONS.items()},
    **{f"{i} {type(module).__name__}": module for i, module in enumerate(MODULES)},
    **{f"{mode} {s}": Apply(partial(resized, mode=mode, settings=s)) for mode, s in RESIZINGS},
    **ROUNDED,
    **{f"prelu {n}": PReLU(*n) for n in product((2, 3, 4), (1, 3), (False, True))},
}
"""What the exporter writes, in one network."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What ONNX Runtime and PyTorch compute, by part."""
    x = images(4)
    model = capture(Each(PARTS).eval(), x)
    path = export_onnx(model, x[:1], tmp_path_factory.mktemp("parts") / "model.onnx", "int8")
    with torch.no_grad():
        return outputs(path, {"x": x}), Each(PARTS).eval()(x)


@pytest.mark.parametrize("name", PARTS)
def test_it_is_what_pytorch_computes(name, parts):
    out, expected = parts[0][name], parts[1][name]
    assert out.shape == expected.shape and torch.allclose(out, expected, atol=1e-4 if name in ROUNDED else 1e-5)


def test_whole_factors_stay_one_operator(tmp_path):
    model = capture(Apply(OPERATIONS["nearest"]), images(4))
    proto = onnx.load(export_onnx(model, images(4), tmp_path / "model.onnx"))
    assert [node.op_type for node in proto.graph.node] == ["Resize"]


def test_one_dimension(tmp_path):
    model = capture(nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU()), torch.randn(2, 3, 8))
    x = torch.randn(5, 3, 8)
    assert torch.allclose(exported(model, x, tmp_path, "int8"), model(x), atol=1e-5)


WIDTHS = [(2, 4), *(pytest.param(w, marks=pytest.mark.slow) for w in ((2, 2), (3, 3), (4, 8)))]


@pytest.fixture(scope="module", params=WIDTHS, ids=str)
def blocks(request):
    """All networks of blocks in one, quantized, and what they compute, by name."""
    model, _ = quantized(Each({name: network(name) for name in NETWORKS}).eval(), bits(*request.param))
    with quantizing(model), torch.no_grad():
        return model, model(images(16))


@pytest.fixture(scope="module", params=["native", "int8"])
def block_outputs(request, blocks, tmp_path_factory):
    """What PyTorch computes, ONNX Runtime as written, and with its fusions, by name."""
    model, expected = blocks
    with quantizing(model), torch.no_grad():
        path = export_onnx(model, images(1), tmp_path_factory.mktemp("blocks") / "model.onnx", request.param)
    written, fused = (outputs(path, {"x": images(16)}, optimize) for optimize in (False, True))
    return expected, written, fused


@pytest.mark.parametrize("name", NETWORKS)
def test_quantized_blocks(name, block_outputs):
    expected, written, fused = (found[name] for found in block_outputs)
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
def test_a_fully_connected_layer_on_tokens(container, per_channel, tmp_path):
    """With ONNX Runtime's fusions, whether or not 2-bit rows fill whole bytes."""
    cases = list(product((10, 16), (2, 3, 4)))
    parts = {f"{bit} bits, width {width}": filled(Tokens(width)) for width, bit in cases}
    overrides = {f"parts.{i}.inner": LayerBits(w_bit=bit) for i, (_, bit) in enumerate(cases)}
    activations = ActivationQConfig(bit=8, ch_axis=1 if per_channel else -1)
    model, plan = quantized(Each(parts).eval(), QuantConfig(activations, overrides=overrides))
    inner = [spec.bit for spec in plan.quantizers if spec.layer.endswith(".inner") and spec.kind is Kind.WEIGHT]
    assert inner == [bit for _, bit in cases]
    with quantizing(model), torch.no_grad():
        expected = model(images(16))
        path = export_onnx(model, images(1), tmp_path / "model.onnx", container)
    for name, written in outputs(path, {"x": images(16)}).items():
        spread = expected[name].max() - expected[name].min()
        assert (written - expected[name]).abs().max() < (1e-4 if container == "native" else 2e-2) * spread, name


@pytest.mark.parametrize("kind, size", [("timm:mobilenetv3_small_050", 64), ("torchvision:shufflenet_v2_x0_5", 64),
                                        pytest.param("torchvision:squeezenet1_1", 64, marks=pytest.mark.slow),
                                        ("digits_resnet", 8)])  # fmt: skip
def test_common_networks(kind, size, tmp_path):
    x = torch.randn(3, 1 if kind == "digits_resnet" else 3, size, size)
    model = capture(build_model(kind), x)
    with torch.no_grad():
        expected = model(x)
    assert torch.allclose(exported(model, x, tmp_path, "int8"), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x: torch.special.bessel_j0(x), r"special_bessel_j0 in 'the model'.*cannot be written as ONNX"),
        (lambda x: F.avg_pool2d(x, 2, ceil_mode=True, divisor_override=3), r"avg_pool2d in .*divisor_override=3"),
    ],
    ids=["unknown", "settings"],
)
def test_what_cannot_be_written_is_named(function, reason, tmp_path):
    graph = capture(Apply(function), images(4))
    with pytest.raises(ExportError, match=reason) as caught:
        export_onnx(graph, images(4), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
