"""What the tests of the export share: running ONNX files, and how two runs may differ."""

from pathlib import Path

import onnxruntime as ort
import torch
from torch import Tensor, fx, nn

from qdrop.export import Container, export_onnx
from qdrop.export.containers import stored_weight
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.ops import module_of
from qdrop.quantization.quantized_module import QuantizedModule

CLOSE = 1e-4
"""Sums in another order change logits by less than this share of their range."""
TIE = 0.1
"""A value between two levels may so come to fall to the other side, and moves what follows by a whole step;
in networks with random weights the logits of that image then change by up to this share of their range."""


def run(path: Path, x: Tensor, optimize: bool = True) -> Tensor:
    """The output of an ONNX file in ONNX Runtime, with its default optimizations or none."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def exported(model: fx.GraphModule, x: Tensor, folder: Path, container: str, optimize: bool = True) -> Tensor:
    """What `model` computes for `x` once exported; batch sizes of example and run differ on purpose."""
    path = folder / f"{container}.onnx"
    export_onnx(model, x[:1], path, container)
    return run(path, x, optimize)


def with_rounded_biases(model: fx.GraphModule) -> dict[str, Tensor]:
    """Biases as ONNX Runtime rounds them for its integer convolutions, by layer.

    A convolution between two quantizers computes in integers; its bias becomes an int32, in steps of the
    product of the scales of its input and its weight.
    """
    rounded = {}
    for node in model.graph.nodes:
        layer = module_of(node)
        if not isinstance(layer, QuantizedModule) or not isinstance(layer, nn.Conv2d) or layer.bias is None:
            continue
        source, reader = node.args[0], next(iter(node.users))
        while isinstance(module_of(source), nn.MaxPool2d):
            source = source.args[0]
        if isinstance(module_of(reader), nn.ReLU | nn.ReLU6):
            reader = next(iter(reader.users))
        before = module_of(source)
        if isinstance(before, FakeQuantize) and isinstance(module_of(reader), FakeQuantize):
            stored = stored_weight(layer, Container.INT8, float(before.scale))
            step = (before.scale * stored.scale).detach()
            rounded[str(node.target)] = torch.round(layer.bias.detach() / step) * step
    return rounded


def assert_same(out: Tensor, expected: Tensor, ties: float = 0.25) -> None:
    """Logits agree, but for images with a value between two levels that went the other way.

    Args:
        out: `[N, classes]`.
        expected: `[N, classes]`.
        ties: Largest share of such images.
    """
    spread = float(expected.max() - expected.min())
    difference = (out - expected).abs().amax(1) / spread
    same = difference < CLOSE
    assert same.float().mean() >= 1 - ties, difference
    assert difference.max() < TIE, difference
    best = expected.topk(2).values
    clear = same & (best[:, 0] - best[:, 1] > 2 * CLOSE * spread)
    assert torch.equal(out.argmax(1)[clear], expected.argmax(1)[clear])
