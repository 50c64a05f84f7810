"""One quantizer at a time: which integers, with which rounding, in which type."""

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from networks import activation_spec, bits, images, network, quantized, weight_spec
from onnx_runs import exported, rounded_biases, run
from torch import fx, nn

from qdrop.export import Container, export_onnx
from qdrop.export.containers import storage_for, stored_weight
from qdrop.quantization.fake_quant import FakeQuantize, build_quantizer
from qdrop.quantization.state import quantizing

pytestmark = pytest.mark.slow  # some 250 exports, each of which costs seconds
aten = torch.ops.aten
CONTAINERS = ["native", "int8"]
WIDTHS = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}


@dataclass
class Layer:
    """A convolution or a linear layer, and the quantizer of its weight, calibrated and on."""

    layer: nn.Module
    quantizer: FakeQuantize

    def __post_init__(self):
        self.quantizer.fit(self.layer.weight)
        self.quantizer.active = True

    def rounded(self):
        return self.quantizer.quantize(self.layer.weight, None).detach()


def graph_of(*parts) -> fx.GraphModule:
    """A network of quantizers, layers and operators, one after another; operators with what they take behind `x`."""
    root = {}
    graph = fx.Graph()
    value = graph.placeholder("x")
    for index, part in enumerate(parts):
        match part:
            case FakeQuantize():
                root[f"m{index}.output_quantizer"] = part
                value = graph.call_module(f"m{index}.output_quantizer", (value,))
            case Layer(layer, quantizer):
                root |= {f"m{index}.weight": layer.weight, f"m{index}.weight_quantizer": quantizer}
                operands = [graph.call_module(f"m{index}.weight_quantizer", (graph.get_attr(f"m{index}.weight"),))]
                if layer.bias is not None:
                    root[f"m{index}.bias"] = layer.bias
                    operands.append(graph.get_attr(f"m{index}.bias"))
                operator = aten.linear.default if isinstance(layer, nn.Linear) else aten.conv2d.default
                value = graph.call_function(operator, (value, *operands))
            case (operator, *given):
                value = graph.call_function(operator, (value, *given))
    graph.output(value)
    return fx.GraphModule(root, graph).eval()


def quantizer(scale=0.3, zero_point=0.0, **kwargs):
    built = build_quantizer(activation_spec(**kwargs))
    with torch.no_grad():
        built.scale.fill_(scale)
        built.zero_point.fill_(zero_point)
    built.active = True
    return built


def around_levels(scale, low, high):
    """Values on every level, half-way between, a float to either side of half-way, and far outside. [1, n]"""
    steps = torch.arange(low - 4, high + 5, 0.5)
    values = steps * torch.tensor(scale)
    inf = torch.tensor(torch.inf)
    return torch.cat([values, torch.nextafter(values, inf), torch.nextafter(values, -inf)])[None]


@pytest.mark.parametrize("optimize", [False, True], ids=["as written", "optimized"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bit", range(2, 9))
def test_rounding_and_saturation_of_activations(bit, symmetric, container, optimize, tmp_path):
    q = quantizer(scale=0.1, zero_point=0 if symmetric else 2 ** (bit - 1) - 1, bit=bit, symmetric=symmetric)
    x = around_levels(0.1, -(2**bit), 2**bit)
    assert torch.equal(exported(graph_of(q), x, tmp_path, container, optimize), q(x))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("bit", [2, 3, 4, 8])
def test_activations_with_a_scale_per_channel(bit, container, tmp_path):
    q = quantizer(bit=bit, ch_axis=1)
    with torch.no_grad():
        q.scale.copy_(torch.tensor([0.1, 0.2, 0.3]))
        q.zero_point.copy_(torch.tensor([0.0, 1.0, 3.0]))
    x = images(4) * 2
    assert torch.equal(exported(graph_of(q), x, tmp_path, container), q(x))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "function",
    [(aten.relu.default,), (aten.hardtanh.default, 0.0, 6.0), (aten.hardtanh.default, -0.7, 2.0),
     (aten.clamp.default, None, 1.2)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("zero_point", [0, 5])
@pytest.mark.parametrize("bit", [2, 3, 4, 8])
def test_a_function_that_clips_becomes_part_of_the_quantizer(bit, zero_point, function, container, tmp_path):
    model = graph_of(function, quantizer(scale=0.5, zero_point=min(zero_point, 2**bit - 1), bit=bit))
    x = around_levels(0.5, -10, 20)
    assert torch.equal(exported(model, x, tmp_path, container), model(x))
    operations = {node.op_type for node in onnx.load(tmp_path / f"{container}.onnx").graph.node}
    assert operations <= {"QuantizeLinear", "DequantizeLinear", "Clip", "Min", "Max"}


def test_no_clip_where_the_type_ends_with_the_quantizer(tmp_path):
    exported(graph_of(quantizer(bit=8)), images(2), tmp_path, "int8")
    operations = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert operations == ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize("bit", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_types(bit, symmetric, tmp_path):
    native = f"{'' if symmetric else 'U'}INT{WIDTHS[bit]}"
    for container, expected in (("native", native), ("int8", "UINT8")):
        export_onnx(graph_of(quantizer(bit=bit, symmetric=symmetric)), images(2), tmp_path / "q.onnx", container)
        types = {onnx.TensorProto.DataType.Name(i.data_type) for i in onnx.load(tmp_path / "q.onnx").graph.initializer}
        assert types - {"FLOAT"} == {expected}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("bit", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "behind",
    [(aten.max_pool2d.default, [2, 2]), (aten.flatten.using_ints, 2), (aten.flatten.using_ints, 1)],
    ids=["pool", "part", "all"],
)
def test_symmetric_activations_before_what_keeps_their_integers(behind, bit, container, tmp_path):
    """ONNX Runtime moves quantizers past such operations, and has to load what it makes of them."""
    q = quantizer(scale=0.3, bit=bit, symmetric=True)
    layer = Layer(nn.Conv2d(3, 3, 1), build_quantizer(weight_spec((3, 3, 1, 1), 4, symmetric=True)))
    model = graph_of(layer, (aten.relu.default,), q, behind, (aten.sigmoid.default,))
    x = images(4) * 2
    with torch.no_grad():
        assert torch.allclose(exported(model, x, tmp_path, container), model(x), atol=1e-5)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["AdaRoundFakeQuantize", "FixedFakeQuantize", "LSQPlusFakeQuantize"])
@pytest.mark.parametrize("bit", range(2, 9))
def test_weights_are_the_same_numbers(bit, name, symmetric, container, tmp_path):
    layer = Layer(nn.Linear(37, 5, bias=False), build_quantizer(weight_spec((5, 37), bit, name, symmetric)))
    with torch.no_grad():
        if name == "AdaRoundFakeQuantize":
            layer.quantizer.rounding.alpha.copy_(torch.randn(5, 37))
            layer.quantizer.harden(layer.layer.weight)
        out = exported(graph_of(layer), torch.eye(37), tmp_path, container, optimize=False)
        assert torch.equal(out, layer.rounded().T)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_weight_with_one_scale(container, tmp_path):
    layer = Layer(nn.Conv2d(3, 4, 1), build_quantizer(weight_spec((4, 3, 1, 1), 3, ch_axis=-1)))
    x = images(2)
    assert torch.allclose(exported(graph_of(layer), x, tmp_path, container), graph_of(layer)(x), atol=1e-6)


def calibrated(weight, bit):
    """The quantizer of a weight, over all of its range."""
    quantizer = build_quantizer(weight_spec(tuple(weight.shape), bit))
    quantizer.set_range(weight.amin(1), weight.amax(1))
    quantizer.prepare(weight)
    return quantizer


def test_spread_weights_stay_small_and_equal():
    weight = torch.randn(4, 300)
    quantizer = calibrated(weight, 2)
    stored = stored_weight(quantizer, weight, Container.INT8)
    assert 32 <= stored.integers.abs().max() <= 64
    assert not stored.zero_point.any()
    assert torch.equal(stored.integers * stored.scale[:, None], quantizer.quantize(weight, None))


def test_an_8_bit_weight_off_centre_keeps_its_zero_points():
    weight = torch.rand(4, 300)  # one-sided: integers 0 to 255, zero point 0
    quantizer = calibrated(weight, 8)
    stored = stored_weight(quantizer, weight, Container.INT8)
    assert stored.storage == storage_for(quantizer, Container.INT8)
    assert stored.integers.max() > 127
    assert torch.equal(stored.integers, quantizer.integers(weight).int())


def test_integer_convolution_is_the_convolution_with_a_rounded_bias(tmp_path):
    """Also that ONNX Runtime divides by the output's scale as we do, up to ties."""
    conv = Layer(nn.Conv2d(3, 8, 3), build_quantizer(weight_spec((8, 3, 3, 3), 2, ch_axis=0)))
    before, behind = quantizer(scale=0.21, zero_point=7, bit=4), quantizer(scale=0.5, bit=4)
    model = graph_of(before, conv, (aten.relu.default,), behind)
    x = images(8)
    with torch.no_grad():
        out = exported(model, x, tmp_path, "int8")
        kept = (out != model(x)).float().mean()
        for path, bias in rounded_biases(model).items():
            model.get_parameter(path).copy_(bias)
        assert (out != model(x)).float().mean() <= min(float(kept), 1e-3)


def test_any_batch_size_and_off_means_float(tmp_path):
    model, _ = quantized(network("residual"), bits(2, 4))
    assert export_onnx(model, images(1), str(tmp_path / "float.onnx")) == tmp_path / "float.onnx"
    assert not any("Quantize" in node.op_type for node in onnx.load(tmp_path / "float.onnx").graph.node)
    for count in (1, 5):
        assert torch.allclose(run(tmp_path / "float.onnx", images(count)), model(images(count)), atol=1e-5)
    with quantizing(model, weights=True, activations=False):
        export_onnx(model, images(1), tmp_path / "weights.onnx")
        assert np.allclose(run(tmp_path / "weights.onnx", images(5)), model(images(5)).detach(), atol=1e-5)
