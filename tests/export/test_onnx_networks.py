"""The six networks of the paper, exported, against themselves in PyTorch."""

import pytest
import torch
from golden import GOLDEN_MODELS, fill_by_rule, golden_images
from onnx_runs import assert_same, rounded_biases, run

import qdrop
from qdrop.export import export_onnx
from qdrop.graph.insert import quantized_weights
from qdrop.models import build_model

QUICK = {"observer": "MinMaxObserver", "quantizer": "AdaRoundFakeQuantize"}
W2A4 = {
    "w_qconfig": QUICK | {"bit": 2},
    "a_qconfig": {"observer": "MinMaxObserver", "bit": 4},
    "calibrate": 8,
    "recon": None,
}
IMAGES = golden_images(8, 64)


NAMES = [name if name in ("res18", "mnv2") else pytest.param(name, marks=pytest.mark.slow) for name in GOLDEN_MODELS]


@pytest.fixture(scope="module", params=NAMES)
def network(request, tmp_path_factory):
    """A quantized network, its logits for `IMAGES`, and its files by container."""
    model = fill_by_rule(build_model(GOLDEN_MODELS[request.param]))
    quantized, _ = qdrop.quantize(model, IMAGES, W2A4)
    folder = tmp_path_factory.mktemp(request.param)
    files = {name: export_onnx(quantized, IMAGES[:1], folder / f"{name}.onnx", name) for name in ("native", "int8")}
    with torch.inference_mode():
        return quantized, quantized(IMAGES), files


@pytest.mark.parametrize("container", ["native", "int8"])
def test_unoptimized_it_is_the_model(network, container):
    _, expected, files = network
    assert_same(run(files[container], IMAGES, optimize=False), expected)


def test_native_is_the_model(network):
    _, expected, files = network
    assert_same(run(files["native"], IMAGES), expected)


def test_int8_is_the_model_with_rounded_biases(network):
    quantized, _, files = network
    out = run(files["int8"], IMAGES)
    rounded = rounded_biases(quantized)
    assert len(rounded) > 5
    kept = {path: quantized.get_parameter(path).clone() for path in rounded}
    with torch.no_grad():
        for path, bias in rounded.items():
            quantized.get_parameter(path).copy_(bias)
        expected = quantized(IMAGES)
        for path, bias in kept.items():
            quantized.get_parameter(path).copy_(bias)
    assert_same(out, expected, ties=0.5)


def test_native_file_is_as_small_as_its_bits(network):
    quantized, _, files = network
    weights = quantized_weights(quantized)
    stored_width = {2: 2, 8: 8}
    bits = sum(found.weight.numel() * stored_width[found.quantizer.spec.bit] for found in weights)
    floats = sum(2 * len(found.weight) + len(found.weight) / 4 for found in weights) * 4  # scale, bias, zero point
    size = files["native"].stat().st_size
    names = 1200 * len(weights)  # nodes of the graph, with their names and attributes
    assert size < bits / 8 + floats + names
