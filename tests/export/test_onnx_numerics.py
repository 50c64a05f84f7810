"""One quantizer at a time: which integers, with which rounding, in which type."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from networks import activation_spec, bits, images, network, quantized, weight_spec
from onnx_runs import exported, outputs, rounded_biases, run
from torch import fx, nn

from qdrop.export import Container, export_onnx
from qdrop.export.containers import storage_for, stored_weight
from qdrop.quantization.fake_quant import FakeQuantize, build_quantizer
from qdrop.quantization.state import quantizing

pytestmark = pytest.mark.slow  # a minute: some twenty exports, each of which costs seconds
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
    root, graph = {}, fx.Graph()
    graph.output(chained(graph, root, graph.placeholder("x"), parts, "m"))
    return fx.GraphModule(root, graph).eval()


def chained(graph, root, value, parts, prefix):
    """The node of the last of `parts`, put behind `value`; their tensors and modules go to `root`."""
    for index, part in enumerate(parts):
        name = f"{prefix}{index}"
        match part:
            case FakeQuantize():
                root[f"{name}.output_quantizer"] = part
                value = graph.call_module(f"{name}.output_quantizer", (value,))
            case Layer(layer, quantizer):
                root |= {f"{name}.weight": layer.weight, f"{name}.weight_quantizer": quantizer}
                operands = [graph.call_module(f"{name}.weight_quantizer", (graph.get_attr(f"{name}.weight"),))]
                if layer.bias is not None:
                    root[f"{name}.bias"] = layer.bias
                    operands.append(graph.get_attr(f"{name}.bias"))
                operator = aten.linear.default if isinstance(layer, nn.Linear) else aten.conv2d.default
                value = graph.call_function(operator, (value, *operands))
            case (operator, *given):
                value = graph.call_function(operator, (value, *given))
    return value


class Cases:
    """Many small networks in one file, each with an input of its own: an export costs seconds, whatever is in it."""

    def __init__(self):
        self.parts, self.given = {}, {}

    def add(self, name, x, *parts):
        self.parts[name], self.given[name] = parts, x

    def run(self, folder, container, *optimize):
        """What PyTorch computes, and ONNX Runtime with its optimizations or without, by name of the case."""
        root, graph = {}, fx.Graph()
        inputs = [graph.placeholder(f"x{index}") for index in range(len(self.parts))]
        graph.output(
            {
                name: chained(graph, root, x, parts, f"case{index}_")
                for index, (x, (name, parts)) in enumerate(zip(inputs, self.parts.items(), strict=True))
            }
        )
        model = fx.GraphModule(root, graph).eval()
        with torch.no_grad():
            path = export_onnx(model, tuple(x[:1] for x in self.given.values()), folder / "cases.onnx", container)
            given = {f"x{index}": x for index, x in enumerate(self.given.values())}
            return model(*self.given.values()), *(outputs(path, given, each) for each in optimize or (True,))


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


def each(cases, folder, container, *optimize):
    """Name, and results of PyTorch and of ONNX Runtime, of each case."""
    expected, *found = cases.run(folder, container, *optimize)
    assert len(expected) == len(cases.parts) > 0
    return [(name, value, *(results[name] for results in found)) for name, value in expected.items()]


@pytest.mark.parametrize("container", CONTAINERS)
def test_rounding_and_saturation_of_activations(container, tmp_path):
    cases = Cases()
    for bit, symmetric in product(range(2, 9), (False, True)):
        zero_point = 0 if symmetric else 2 ** (bit - 1) - 1
        q = quantizer(scale=0.1, zero_point=zero_point, bit=bit, symmetric=symmetric)
        cases.add(f"{bit} {symmetric}", around_levels(0.1, -(2**bit), 2**bit), q)
    for name, expected, written, optimized in each(cases, tmp_path, container, False, True):
        assert torch.equal(written, expected) and torch.equal(optimized, expected), name


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
def test_a_function_that_clips_becomes_part_of_the_quantizer(container, tmp_path):
    functions = (
        (aten.relu.default,),
        (aten.hardtanh.default, 0.0, 6.0),
        (aten.hardtanh.default, -0.7, 2.0),
        (aten.clamp.default, None, 1.2),
    )
    cases = Cases()
    for function, zero_point, bit in product(functions, (0, 5), (2, 3, 4, 8)):
        q = quantizer(scale=0.5, zero_point=min(zero_point, 2**bit - 1), bit=bit)
        cases.add(f"{function} {zero_point} {bit}", around_levels(0.5, -10, 20), function, q)
    for name, expected, found in each(cases, tmp_path, container):
        assert torch.equal(found, expected), name
    operations = {node.op_type for node in onnx.load(tmp_path / "cases.onnx").graph.node}
    assert operations <= {"QuantizeLinear", "DequantizeLinear", "Clip", "Min", "Max"}


def test_no_clip_where_the_type_ends_with_the_quantizer(tmp_path):
    exported(graph_of(quantizer(bit=8)), images(2), tmp_path, "int8")
    operations = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert operations == ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_types(container, tmp_path):
    cases, expected = Cases(), []
    for bit, symmetric in product(range(2, 9), (False, True)):
        cases.add(f"{bit} {symmetric}", images(2), quantizer(bit=bit, symmetric=symmetric))
        expected.append(f"{'' if symmetric else 'U'}INT{WIDTHS[bit]}" if container == "native" else "UINT8")
    cases.run(tmp_path, container)
    graph = onnx.load(tmp_path / "cases.onnx").graph
    types = {i.name: onnx.TensorProto.DataType.Name(i.data_type) for i in graph.initializer}
    order = [value.name for value in graph.input]
    first = {node.input[0]: types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert [first[name] for name in order] == expected


@pytest.mark.parametrize("container", CONTAINERS)
def test_symmetric_activations_before_what_keeps_their_integers(container, tmp_path):
    """ONNX Runtime moves quantizers past such operations, and has to load what it makes of them."""
    pool, part, whole = (aten.max_pool2d.default, [2, 2]), (aten.flatten.using_ints, 2), (aten.flatten.using_ints, 1)
    cases = Cases()
    for behind, bit in product((pool, part, whole), (2, 3, 4, 8)):
        layer = Layer(nn.Conv2d(3, 3, 1), build_quantizer(weight_spec((3, 3, 1, 1), 4, symmetric=True)))
        q = quantizer(scale=0.3, bit=bit, symmetric=True)
        parts = (layer, (aten.relu.default,), q, behind, (aten.sigmoid.default,))
        cases.add(f"{behind} {bit}", images(4) * 2, *parts)
    for name, expected, found in each(cases, tmp_path, container):
        assert torch.allclose(found, expected, atol=1e-5), name


@pytest.mark.parametrize("container", CONTAINERS)
def test_weights_are_the_same_numbers(container, tmp_path):
    cases, rounded = Cases(), {}
    kinds = ("AdaRoundFakeQuantize", "FixedFakeQuantize", "LSQPlusFakeQuantize")
    for bit, kind, symmetric in product(range(2, 9), kinds, (False, True)):
        layer = Layer(nn.Linear(37, 5, bias=False), build_quantizer(weight_spec((5, 37), bit, kind, symmetric)))
        if kind == "AdaRoundFakeQuantize":
            with torch.no_grad():
                layer.quantizer.rounding.alpha.copy_(torch.randn(5, 37))
                layer.quantizer.harden(layer.layer.weight)
        name = f"{bit} {kind} {symmetric}"
        cases.add(name, torch.eye(37), layer)
        rounded[name] = layer.rounded()
    for name, _, found in each(cases, tmp_path, container, False):
        assert torch.equal(found, rounded[name].T), name


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
