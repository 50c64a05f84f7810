"""One quantizer at a time: which integers, with which rounding, in which type."""

import numpy as np
import onnx
import pytest
import torch
from networks import activation_spec, bits, images, network, quantized, weight_spec
from onnx_runs import exported, run, with_rounded_biases
from torch import fx, nn

from qdrop.export import Container, export_onnx
from qdrop.export.containers import storage_for, stored_weight
from qdrop.quantization.fake_quant import build_quantizer
from qdrop.quantization.quantized_module import QConv2d, QLinear
from qdrop.quantization.state import quantizing

CONTAINERS = ["native", "int8"]
WIDTHS = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}


def graph_of(*modules: nn.Module) -> fx.GraphModule:
    """A graph that calls the modules one after another."""
    root = nn.Module()
    graph = fx.Graph()
    value = graph.placeholder("x")
    for index, module in enumerate(modules):
        root.add_module(f"m{index}", module)
        value = graph.call_module(f"m{index}", (value,))
    graph.output(value)
    return fx.GraphModule(root, graph)


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
@pytest.mark.parametrize("function", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.7, 2.0)])
@pytest.mark.parametrize("zero_point", [0, 5])
@pytest.mark.parametrize("bit", [2, 3, 4, 8])
def test_a_function_that_clips_becomes_part_of_the_quantizer(bit, zero_point, function, container, tmp_path):
    model = graph_of(function, quantizer(scale=0.5, zero_point=min(zero_point, 2**bit - 1), bit=bit))
    x = around_levels(0.5, -10, 20)
    assert torch.equal(exported(model, x, tmp_path, container), model(x))
    operations = {node.op_type for node in onnx.load(tmp_path / f"{container}.onnx").graph.node}
    assert operations <= {"QuantizeLinear", "DequantizeLinear", "Clip", "Min", "Max", "Identity"}


def test_no_clip_where_the_type_ends_with_the_quantizer(tmp_path):
    exported(graph_of(quantizer(bit=8)), images(2), tmp_path, "int8")
    operations = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert operations == ["QuantizeLinear", "DequantizeLinear", "Identity"]


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
@pytest.mark.parametrize("behind", [nn.MaxPool2d(2), nn.Flatten(2), nn.Flatten()], ids=["pool", "part", "all"])
def test_symmetric_activations_before_what_keeps_their_integers(behind, bit, container, tmp_path):
    """ONNX Runtime moves quantizers past such operations, and has to load what it makes of them."""
    q = quantizer(scale=0.3, bit=bit, symmetric=True)
    layer = QConv2d.from_float(nn.Conv2d(3, 3, 1), build_quantizer(weight_spec((3, 3, 1, 1), 4, symmetric=True)))
    layer.calibrate_weight()
    layer.weight_quantizer.active = True
    model = graph_of(layer, nn.ReLU(), q, behind, nn.Sigmoid())
    x = images(4) * 2
    with torch.no_grad():
        assert torch.allclose(exported(model, x, tmp_path, container), model(x), atol=1e-5)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["AdaRoundFakeQuantize", "FixedFakeQuantize", "LSQPlusFakeQuantize"])
@pytest.mark.parametrize("bit", range(2, 9))
def test_weights_are_the_same_numbers(bit, name, symmetric, container, tmp_path):
    layer = QLinear.from_float(
        nn.Linear(37, 5, bias=False), build_quantizer(weight_spec((5, 37), bit, name, symmetric))
    )
    layer.calibrate_weight()
    layer.weight_quantizer.active = True
    with torch.no_grad():
        if name == "AdaRoundFakeQuantize":
            layer.weight_quantizer.alpha.copy_(torch.randn(5, 37))
            layer.settle()
        out = exported(graph_of(layer), torch.eye(37), tmp_path, container, optimize=False)
        assert torch.equal(out, layer.quantized_weight().T)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_weight_with_one_scale(container, tmp_path):
    layer = QConv2d.from_float(nn.Conv2d(3, 4, 1), build_quantizer(weight_spec((4, 3, 1, 1), 3, ch_axis=-1)))
    layer.calibrate_weight()
    layer.weight_quantizer.active = True
    x = images(2)
    assert torch.allclose(exported(graph_of(layer), x, tmp_path, container), layer(x), atol=1e-6)


def linear(weight, bit):
    """A calibrated layer of a given weight."""
    layer = QLinear.from_float(nn.Linear(*weight.shape[::-1]), build_quantizer(weight_spec(tuple(weight.shape), bit)))
    layer.weight = nn.Parameter(weight)
    layer.weight_quantizer.set_range(weight.amin(1), weight.amax(1))
    layer.weight_quantizer.round_to_nearest(weight)
    return layer


def test_spread_weights_stay_small_and_equal():
    layer = linear(torch.randn(4, 300), 2)
    stored = stored_weight(layer, Container.INT8)
    assert 32 <= stored.integers.abs().max() <= 64
    assert not stored.zero_point.any()
    assert torch.equal(stored.integers * stored.scale[:, None], layer.weight_quantizer.quantize(layer.weight, None))


def test_an_8_bit_weight_off_centre_keeps_its_zero_points():
    layer = linear(torch.rand(4, 300), 8)  # one-sided: integers 0 to 255, zero point 0
    stored = stored_weight(layer, Container.INT8)
    assert stored.storage == storage_for(layer.weight_quantizer, Container.INT8)
    assert stored.integers.max() > 127
    assert torch.equal(stored.integers, layer.integers().int())


def test_integer_convolution_is_the_convolution_with_a_rounded_bias(tmp_path):
    """Also that ONNX Runtime divides by the output's scale as we do, up to ties."""
    conv = QConv2d.from_float(nn.Conv2d(3, 8, 3), build_quantizer(weight_spec((8, 3, 3, 3), 2, ch_axis=0)))
    conv.calibrate_weight()
    conv.weight_quantizer.active = True
    model = graph_of(quantizer(scale=0.21, zero_point=7, bit=4), conv, nn.ReLU(), quantizer(scale=0.5, bit=4))
    x = images(8)
    with torch.no_grad():
        out = exported(model, x, tmp_path, "int8")
        kept = (out != model(x)).float().mean()
        conv.bias.copy_(with_rounded_biases(model)["m1"])
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
