"""Networks beyond a chain of convolutions: several inputs and outputs, other products, what is fused."""

from collections import Counter

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from networks import bits, filled, images
from onnx_runs import outputs
from torch import nn

from qdrop.export import export_onnx
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph
from qdrop.graph.plan import make_plan
from qdrop.graph.scopes import calibrating
from qdrop.quantization.state import quantizing


class Several(nn.Module):
    """Takes a tensor and a nest; gives a nest, in it one value twice and an input as it is."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x, more):
        y = F.relu(self.a(x) + self.b(more["image"]))
        logits = self.head(y.mean((2, 3)))
        return {"add": logits, "features": (y, logits), "image": x}


class Products(nn.Module):
    """A transposed convolution, a kept batch norm, attention, and a constant matrix on the right."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2, groups=2)
        self.qkv, self.matrix = nn.Linear(8, 24), nn.Parameter(torch.randn(8, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        y = self.bn(F.relu(self.stem(x)))
        y = F.relu(self.up(y)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(y).unflatten(-1, (3, 8)).unbind(2)
        y = F.scaled_dot_product_attention(q, k, v) @ self.matrix
        return self.head(F.relu(y).mean(1))


def quantized(model, example, *given, weights=4):
    graph = capture(model, example)
    quantize_graph(graph, make_plan(graph, bits(weights, 8, placement="integer")))
    with calibrating(graph):
        graph(*given)
    return graph


@pytest.mark.parametrize("container", ["native", "int8"])
def test_several_inputs_and_outputs(container, tmp_path):
    x, image = images(4), images(4, seed=1)
    model = quantized(filled(Several()), (x, {"image": image}), x, {"image": image})
    with quantizing(model), torch.no_grad():
        expected = model(x, {"image": image})
        path = export_onnx(model, (x[:1], {"image": image[:1]}), tmp_path / "m.onnx", container)
    found = outputs(path, {"x": x, "more.image": image}, optimize=False)
    assert list(found) == ["add", "features.0", "features.1", "image"]
    for name, value in (
        ("add", expected["add"]),
        ("features.0", expected["features"][0]),
        ("image", expected["image"]),
    ):
        assert torch.allclose(found[name], value, atol=1e-4)
    assert torch.equal(found["features.1"], found["add"])
    assert [dim.dim_param for dim in onnx.load(path).graph.input[1].type.tensor_type.shape.dim][:1] == ["N"]


@pytest.mark.parametrize("container", ["native", "int8"])
@pytest.mark.parametrize("weights", [2, 4])
def test_other_products(weights, container, tmp_path):
    model = quantized(filled(Products()), images(8), images(8), weights=weights)
    with quantizing(model), torch.no_grad():
        expected = model(images(8))
        path = export_onnx(model, images(1), tmp_path / "m.onnx", container)
    spread = expected.max() - expected.min()
    for optimize, tolerance in ((False, 1e-2), (True, 1e-2 if container == "native" else 5e-2)):
        found = outputs(path, {"x": images(8)}, optimize)["output"]
        assert (found - expected).abs().max() < tolerance * spread
    types = Counter(onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in onnx.load(path).graph.initializer)
    assert types[{"native": f"UINT{weights}", "int8": "INT8"}[container]] >= 3


def test_products_of_activations_run_in_integers(tmp_path):
    model = quantized(filled(Products()), images(8), images(8))
    with quantizing(model):
        path = export_onnx(model, images(1), tmp_path / "m.onnx", "int8")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert operators["QLinearMatMul"] >= 1 and operators["QGemm"] >= 2
