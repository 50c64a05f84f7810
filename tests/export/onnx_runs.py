"""What the tests of the export share: running ONNX files, and how two runs may differ."""

from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, fx

from qdrop.export import Container, export_onnx
from qdrop.export.containers import BiasStep, stored_weight
from qdrop.graph.insert import quantized_weights
from qdrop.graph.ops import constant, operation

CLOSE = 1e-4
"""Sums in another order change logits by less than this share of their range."""
TIE = 0.1
"""A value between two levels may so come to fall to the other side, and moves what follows by a whole step;
in networks with random weights the logits of that image then change by up to this share of their range."""


def outputs(path: Path, given: dict[str, Tensor], optimize: bool = True) -> dict[str, Tensor]:
    """All outputs of an ONNX file in ONNX Runtime, with its default optimizations or none."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: x.numpy() for name, x in given.items()})
    return {output.name: torch.from_numpy(value) for output, value in zip(session.get_outputs(), found, strict=True)}


def run(path: Path, x: Tensor, optimize: bool = True) -> Tensor:
    """The one output of a file with one input."""
    (given,) = onnx.load(path).graph.input
    return outputs(path, {given.name: x}, optimize)["output"]


def exported(model: fx.GraphModule, x: Tensor, folder: Path, container: str, optimize: bool = True) -> Tensor:
    """What `model` computes for `x` once exported; batch sizes of example and run differ on purpose."""
    path = folder / f"{container}.onnx"
    export_onnx(model, x[:1], path, container)
    return run(path, x, optimize)


def rounded_biases(model: fx.GraphModule) -> dict[str, Tensor]:
    """Biases as ONNX Runtime rounds them for its integer convolutions, by path.

    A convolution between two quantizers computes in integers; its bias becomes an int32, in steps of the
    product of the scales of its input and its weight.
    """
    weights = {f"{found.name}_quantizer": found for found in quantized_weights(model)}
    rounded = {}
    for node in model.graph.nodes:
        if operation(node) != "conv2d" or len(node.args) < 3 or node.args[2] is None:
            continue
        (source, weight, bias), reader = node.args[:3], next(iter(node.users))
        while operation(source) == "max_pool2d":
            source = source.args[0]
        if operation(reader) in ("relu", "hardtanh"):
            reader = next(iter(reader.users))
        if source.op == weight.op == reader.op == "call_module":
            scale = model.get_submodule(source.target).scale
            found = weights[weight.target]
            step = BiasStep.of(constant(bias), float(scale), 0)
            stored = stored_weight(found.quantizer, found.weight, Container.INT8, step)
            step = (scale * stored.scale).detach()
            rounded[bias.target] = torch.round(constant(bias).detach() / step) * step
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
