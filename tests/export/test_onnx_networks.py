"""The six networks of the paper, exported, against themselves in PyTorch."""

import pytest
import torch
from golden import GOLDEN_MODELS, fill_by_rule, golden_images
from onnx_runs import assert_same, exported, with_rounded_biases
from torch import nn

import qdrop
from qdrop.models import build_model

QUICK = {"observer": "MinMaxObserver", "quantizer": "AdaRoundFakeQuantize"}
W2A4 = {
    "w_qconfig": QUICK | {"bit": 2},
    "a_qconfig": {"observer": "MinMaxObserver", "bit": 4},
    "calibrate": 8,
    "recon": None,
}
IMAGES = golden_images(8, 64)


@pytest.fixture(scope="module", params=GOLDEN_MODELS)
def network(request):
    """A quantized network and its logits for `IMAGES`."""
    model = fill_by_rule(build_model(GOLDEN_MODELS[request.param]))
    quantized, _ = qdrop.quantize(model, IMAGES, W2A4)
    with torch.inference_mode():
        return quantized, quantized(IMAGES)


@pytest.mark.parametrize("container", ["native", "int8"])
def test_unoptimized_it_is_the_model(network, container, tmp_path):
    quantized, expected = network
    assert_same(exported(quantized, IMAGES, tmp_path, container, optimize=False), expected)


def test_native_is_the_model(network, tmp_path):
    quantized, expected = network
    assert_same(exported(quantized, IMAGES, tmp_path, "native"), expected)


def test_int8_is_the_model_with_rounded_biases(network, tmp_path):
    quantized, _ = network
    out = exported(quantized, IMAGES, tmp_path, "int8")
    rounded = with_rounded_biases(quantized)
    assert len(rounded) > 5
    kept = {name: quantized.get_submodule(name).bias for name in rounded}
    for name, bias in rounded.items():
        quantized.get_submodule(name).bias = nn.Parameter(bias, requires_grad=False)
    with torch.inference_mode():
        expected = quantized(IMAGES)
    for name, bias in kept.items():
        quantized.get_submodule(name).bias = bias
    assert_same(out, expected, ties=0.5)


def test_native_file_is_as_small_as_its_bits(network, tmp_path):
    quantized, _ = network
    exported(quantized, IMAGES, tmp_path, "native")
    layers = qdrop.quantization.state.quantized_modules(quantized)
    stored_width = {2: 2, 8: 8}
    bits = sum(q.weight.numel() * stored_width[q.weight_quantizer.spec.bit] for q in layers)
    floats = sum(2 * len(q.weight) + len(q.weight) / 4 for q in layers) * 4  # scale, bias, zero point
    size = (tmp_path / "native.onnx").stat().st_size
    names = 1200 * len(layers)  # nodes of the graph, with their names and attributes
    assert size < bits / 8 + floats + names
