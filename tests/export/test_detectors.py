"""Detectors as files: the packed one gives the same bits, ONNX the same values for each of the outputs."""

import onnx
import pytest
import torch
from onnx_runs import outputs
from torch.utils._pytree import tree_leaves

import qdrop
from qdrop.export import export_onnx
from qdrop.models import build_model

pytestmark = pytest.mark.slow  # minutes: large graphs
RANGE = {"bit": 8, "observer": "MinMaxObserver"}
W8A8 = {"w_qconfig": RANGE, "a_qconfig": RANGE, "recon": None, "placement": "integer"}


@pytest.fixture(scope="module", params=["yolo_fastestv2", "retinanet_r50_fpn", "faster_rcnn_r50_fpn"])
def network(request):
    """The quantized part of a detector, pictures, and its outputs for them."""
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 64, 96)
    quantized, _ = qdrop.quantize(build_model(request.param).features(), pictures, W8A8)
    with torch.no_grad():
        return quantized, pictures, tree_leaves(quantized(pictures))


def test_packed(network, tmp_path):
    quantized, pictures, expected = network
    qdrop.save(quantized, tmp_path / "q")
    with torch.no_grad():
        found = tree_leaves(qdrop.load(tmp_path / "q")(pictures))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("container", ["native", "int8"])
def test_onnx(network, container, tmp_path):
    quantized, pictures, expected = network
    path = export_onnx(quantized, pictures[:1], tmp_path / "q.onnx", container)
    (given,) = onnx.load(path).graph.input
    found = outputs(path, {given.name: pictures}, optimize=container == "int8")
    assert len(set(found)) == len(expected)
    for value, wanted in zip(found.values(), expected, strict=True):
        # Where a value lies between two steps, the other one may be taken, and what comes after differs with it.
        largest = wanted.abs().max().item()
        torch.testing.assert_close(value, wanted, rtol=0, atol=0.05 * largest)
        assert (value - wanted).abs().mean() < 0.005 * largest
