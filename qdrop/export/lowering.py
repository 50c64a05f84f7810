"""Marks become QuantizeLinear and DequantizeLinear, and weights integers."""

from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch import Tensor, fx

from qdrop.export.containers import BiasStep, Storage, activation_storage, stored_weight
from qdrop.export.marks import DOMAIN
from qdrop.export.options import Container
from qdrop.export.writer import Writer, unfused
from qdrop.graph.insert import quantized_weights
from qdrop.quantization.affine import MIN_SCALE
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.spec import Kind

MOVING = frozenset(
    ("DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze",
     "Transpose", "Unsqueeze")
)  # fmt: skip
"""Operators that give back values of their first input."""

FAR = 2**12
"""Times one scale from which on a sum in float32, times an 8-bit zero point, no longer holds steps of the other."""


def lower(model: ir.Model, network: fx.GraphModule, container: Container) -> None:
    """Replace every mark of a network's quantizers, in place.

    Args:
        model: What PyTorch's exporter made of the marked network.
        network: The quantized network.
        container: Which integer types to use.
    """
    nodes = list(model.graph)
    paths = {n: n.attributes["quantizer"].as_string() for n in nodes if n.domain == DOMAIN}
    marks = {node: _quantizer(network, path) for node, path in paths.items()}
    weights = {found.quantizer: found.weight for found in quantized_weights(network)}
    steps = {n: _bias_step(n, marks) for n, q in marks.items() if q.spec.kind is Kind.WEIGHT}
    if container is Container.INT8:
        _keep_far_sums_in_float(nodes, marks)
    for mark, quantizer in marks.items():
        write = Writer(model.graph, mark, paths[mark].removesuffix("_quantizer"))
        if mark in steps:
            made = _weight(write, quantizer, weights[quantizer], container, steps[mark])
        else:
            made = _activation(write, quantizer, container)
        write.done(made)
    model.graph.opset_imports.pop(DOMAIN, None)


def _quantizer(network: fx.GraphModule, path: str) -> FakeQuantize:
    found = network.get_submodule(path)
    assert isinstance(found, FakeQuantize)
    return found


def _activation(write: Writer, quantizer: FakeQuantize, container: Container) -> ir.Value:
    """What a mark reads, clipped to its bounds, rounded to the grid of an activation quantizer.

    QuantizeLinear computes `saturate(round(x/s) + z)` with ties to even, as the quantizer does, and saturates
    at the ends of its type. Where the quantizer's integers end before those of the type, they are clipped.
    Rounding is monotone, so that the bounds of a function such as ReLU6 before it are integers as well.
    """
    spec = quantizer.spec
    storage, shift = activation_storage(quantizer, container)
    axis, shape = ({}, ()) if spec.ch_axis == -1 else ({"axis": spec.ch_axis}, (-1,))
    scale, zero_point = quantizer.scale.detach(), torch.round(quantizer.zero_point.detach()) + shift
    low, high = (end + shift for end in _integer_bounds(quantizer, write.mark))
    grid = (
        write.constant("_scale", scale.reshape(shape)),
        write.constant("_zero_point", storage.tensor("", zero_point.reshape(shape))),
    )
    integers = write.node("QuantizeLinear", write.source, *grid, **axis)
    if container is Container.INT8:
        values = write.node("DequantizeLinear", _clip_integers(write, storage, integers, low, high), *grid, **axis)
        if (scale <= MIN_SCALE).any():  # of a tensor of zeros: a bias would be rounded to multiples of no meaning
            return unfused(write.graph, write.mark, values, write.name)
        return values
    values = write.node("DequantizeLinear", integers, *grid, **axis)
    lowest, highest = ((end - zero_point) * scale for end in (low, high))
    if axis:  # to broadcast along the axes behind that of the channels
        ones = [1] * (len(spec.shape) - spec.ch_axis)
        lowest, highest = lowest.reshape(-1, *ones), highest.reshape(-1, *ones)
    else:
        lowest, highest = lowest.reshape(()), highest.reshape(())
    return _clip_values(write, values, lowest if low > storage.range[0] else None, highest)


def _clip_integers(write: Writer, storage: Storage, integers: ir.Value, low: int, high: int) -> ir.Value:
    """Clip between QuantizeLinear and DequantizeLinear, each of which stays beside the layer it fuses with."""
    if storage.range == (low, high):
        return integers
    ends = [
        write.constant(f"_{key}", storage.tensor("", torch.tensor(end))) for key, end in (("min", low), ("max", high))
    ]
    return write.node("Clip", integers, *ends)


def _clip_values(write: Writer, values: ir.Value, low: Tensor | None, high: Tensor) -> ir.Value:
    """Clip behind DequantizeLinear, where it also clips types that ONNX has no integer Clip for.

    The upper one is always written: it keeps ONNX Runtime (1.32) from fusing the DequantizeLinear with what
    follows, for which it has no kernel in these types. A float Clip operator it would fuse too, and fail.
    """
    upper = write.node("Min", values, write.constant("_max", high))
    return upper if low is None else write.node("Max", upper, write.constant("_min", low))


def _integer_bounds(quantizer: FakeQuantize, mark: ir.Node) -> tuple[int, int]:
    """The smallest and largest integer that values within a mark's bounds are rounded to."""
    ends = [quantizer.qmin, quantizer.qmax]
    for i, key in enumerate(("low", "high")):
        if key in mark.attributes:
            bound = torch.tensor(mark.attributes[key].as_float())
            steps = torch.round(bound / quantizer.scale.detach()) + torch.round(quantizer.zero_point)
            ends[i] = int(steps.clamp(quantizer.qmin, quantizer.qmax))
    return ends[0], ends[1]


def _weight(
    write: Writer, quantizer: FakeQuantize, weight: Tensor, container: Container, step: BiasStep | None
) -> ir.Value:
    """A weight as integers and their DequantizeLinear."""
    stored = stored_weight(quantizer, weight, container, step)
    axis, shape = ({}, ()) if stored.ch_axis == -1 else ({"axis": stored.ch_axis}, (-1,))
    return write.node(
        "DequantizeLinear",
        write.constant("_integers", stored.storage.tensor("", stored.integers)),
        write.constant("_scale", stored.scale.reshape(shape)),
        write.constant("_zero_point", stored.storage.tensor("", stored.zero_point.reshape(shape))),
        **axis,
    )


Marks = dict[ir.Node, FakeQuantize]


def _grid(value: ir.Value | None, marks: Marks) -> float | None:
    """The scale of the integers that whoever reads `value` may compute with; None if there are none.

    ONNX Runtime moves a DequantizeLinear behind operators that only move values, and computes in integers what
    then follows it.
    """
    node = None if value is None else value.producer()
    while node is not None and node.op_type in MOVING and (source := node.inputs[0]) is not None:
        node = source.producer()
    if node is None or node not in marks or marks[node].spec.ch_axis != -1:  # with several scales there is no kernel
        return None
    return float(marks[node].scale.detach())


def _bias_step(weight: ir.Node, marks: Marks) -> BiasStep | None:
    """What the biases of the layers that read a weight ask of its scales."""
    asked = list(_bias_steps(weight, marks))
    if not asked:
        return None
    return BiasStep(torch.stack([step.finest for step in asked]).amax(0), asked[0].ch_axis)


def _bias_steps(weight: ir.Node, marks: Marks) -> Iterator[BiasStep]:
    for layer, index in weight.outputs[0].uses():
        added = layer.inputs[2] if layer.op_type in ("Conv", "Gemm") and index == 1 and len(layer.inputs) > 2 else None
        bias = None if added is None else ir.convenience.get_const_tensor(added)
        scale = _grid(layer.inputs[0], marks)
        if bias is not None and scale is not None:
            axis = 0 if layer.op_type == "Conv" or "transB" in layer.attributes else 1  # of a Gemm [I, O]
            yield BiasStep.of(torch.from_numpy(bias.numpy()), scale, axis)


def _keep_far_sums_in_float(nodes: list[ir.Node], marks: Marks) -> None:
    """In integers ONNX Runtime (1.32) adds what two zero points stand for in float32, however far the scales apart."""
    for node in nodes:
        scales = [_grid(value, marks) for value in node.inputs] if node.op_type == "Add" else []
        steps = [scale for scale in scales if scale is not None]
        if len(steps) == 2 and max(steps) > FAR * min(steps):
            first = node.inputs[0]
            assert first is not None and node.graph is not None
            node.replace_input_with(0, unfused(node.graph, node, first, f"{node.name}/first"))
