"""Trained networks on real images: both flavours give the same answers as PyTorch."""

import copy
import os
from pathlib import Path

import pytest
import torch
from onnx_runs import rounded_biases, run

import qdrop
from qdrop.config import DataConfig
from qdrop.export import export_onnx
from qdrop.models import build_model
from qdrop.solver.imagenet_util import calibration_images, validation_loader

NETWORKS = [
    ("resnet20", "cifar10/weights/resnet20.safetensors", {"type": "cifar10", "val_limit": 200}, 4),
    pytest.param(
        ("mobilenetv2", "imagenet/weights/mobilenetv2.safetensors", {"test_resize": 227, "val_limit": 32}, 8),
        marks=pytest.mark.slow,
    ),
]
"""Builder, weights, data and width; rounded to nearest, MobileNetV2 does not stand fewer bits."""


@pytest.fixture(scope="module", params=NETWORKS, ids=("resnet20", "mobilenetv2"))
def real(request, tmp_path_factory):
    """A quantized network, validation images, its logits for them, how rounding moves these, `[N]`, and its files.

    The movement is measured in PyTorch, with the biases that integer kernels round. One value that falls to the other
    side of a tie makes others do so behind it; through the 52 layers of MobileNetV2 the rounding errors of two
    runs with sums in another order are those of two different roundings, a few percent of the logits' range.
    """
    kind, weights, data, bit = request.param
    root = os.environ.get("QDROP_DATA")
    if not root or not (Path(root) / weights).is_file():
        pytest.skip(f"needs {weights} under QDROP_DATA")
    config = DataConfig(path=str(Path(root) / weights.split("/")[0]), num_workers=0, **data)
    quantization = {
        "w_qconfig": {"bit": bit, "observer": "MinMaxObserver"},
        "a_qconfig": {"bit": bit, "observer": "AvgMinMaxObserver"},
        "calibrate": 32,
        "recon": None,
    }
    model = build_model(kind, path=str(Path(root) / weights))
    quantized, _ = qdrop.quantize(model, calibration_images(config, 32, seed=0), quantization)
    images = torch.cat([batch for batch, _ in validation_loader(config)])
    rounded = copy.deepcopy(quantized)
    for path, bias in rounded_biases(quantized).items():
        rounded.get_parameter(path).data.copy_(bias)
    with torch.inference_mode():
        expected = quantized(images)
        noise = (rounded(images) - expected).abs().amax(1)
    folder = tmp_path_factory.mktemp(kind)
    files = {name: export_onnx(quantized, images[:1], folder / f"{name}.onnx", name) for name in ("native", "int8")}
    return quantized, images, expected, noise, files


@pytest.mark.data
@pytest.mark.parametrize("container, optimize", [("native", True), ("int8", False), ("int8", True)])
def test_same_class_wherever_rounding_cannot_change_it(real, container, optimize):
    _, images, expected, noise, files = real
    out = run(files[container], images, optimize)
    best = expected.topk(2).values
    clear = best[:, 0] - best[:, 1] > 2 * noise.max()
    assert clear.float().mean() > 0.1
    assert torch.equal(out.argmax(1)[clear], expected.argmax(1)[clear])
    assert (out.argmax(1) == expected.argmax(1)).float().mean() > 0.8
    assert (out - expected).abs().amax(1).mean() < 1.5 * noise.mean()


@pytest.mark.data
def test_the_difference_is_that_of_two_precisions_of_pytorch(real):
    quantized, images, expected, _, files = real
    out = run(files["native"], images)
    exactly = copy.deepcopy(quantized)
    for tensor in (*exactly.parameters(), *exactly.buffers()):  # `.double()` is refused: it is no network to deploy
        if tensor.is_floating_point():
            tensor.data = tensor.data.double()
    with torch.inference_mode():
        exact = exactly(images.double())
    span = expected.max() - expected.min()
    between_precisions = ((exact - expected).abs().amax(1) / span).median()
    exported_from_us = ((out - expected).abs().amax(1) / span).median()
    assert exported_from_us <= 2 * between_precisions + 1e-6
