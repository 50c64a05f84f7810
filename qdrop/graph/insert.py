"""From a graph and its plan to a network that quantizes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qdrop.graph.ops import constant, place
from qdrop.graph.plan import Plan
from qdrop.quantization.fake_quant import FakeQuantize, build_quantizer
from qdrop.quantization.spec import Kind, QuantizerSpec


def quantize_graph(graph: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """Put the plan's quantizers into a captured graph, in place. They are off until a scope switches them on.

    Args:
        graph: What :func:`qdrop.graph.capture.capture` returned; its parameters are shared.
        plan: The plan of that graph.

    Returns:
        `graph`, with a quantizer behind every value of the plan, weights included. Switched off it computes what it
        did before. `graph.meta["plan"]` is the plan.

    Raises:
        ValueError: If the plan is of another graph.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    missing = [spec.name for spec in plan.quantizers if spec.node not in nodes]
    if missing:
        raise ValueError(f"the plan is of another network: nothing here for {', '.join(missing[:5])}")
    for spec in plan.quantizers:
        _quantize(graph, nodes[spec.node], spec)
    graph.graph.lint()
    graph.recompile()
    graph.meta["plan"] = plan
    return channels_last(graph)


def _quantize(graph: fx.GraphModule, node: fx.Node, spec: QuantizerSpec) -> None:
    graph.add_submodule(spec.name, build_quantizer(spec))
    with graph.graph.inserting_after(node):
        quantizer = graph.graph.call_module(spec.name, (node,))
    quantizer.meta = {**node.meta, "quantizes": node.name}
    # Sizes are asked from it too: a unit would give both values else.
    node.replace_all_uses_with(quantizer, delete_user_cb=lambda user: user is not quantizer)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight and the quantizer it passes through."""

    name: str
    """Path of the weight."""
    weight: Tensor
    """In full precision."""
    quantizer: FakeQuantize


def quantized_weights(model: fx.GraphModule) -> list[QuantizedWeight]:
    """Every quantized weight of a network or of a part of it, each once."""
    return list({found.name: found for found in _quantized_weights(model)}.values())


def _quantized_weights(model: fx.GraphModule) -> Iterator[QuantizedWeight]:
    for node in model.graph.find_nodes(op="call_module"):
        quantizer = model.get_submodule(str(node.target))
        if isinstance(quantizer, FakeQuantize) and quantizer.spec.kind is Kind.WEIGHT:
            source = node.args[0]
            yield QuantizedWeight(str(source.target), constant(source), quantizer)


def channels_last(graph: fx.GraphModule) -> fx.GraphModule:
    """Lay the weights of 2-D convolutions out in memory as `[O, kH, kW, I]`, in place; activations follow them.

    That is the layout that convolutions are fastest in, on a CPU by up to two times.
    """
    for found in quantized_weights(graph):
        if found.weight.ndim == 4:
            holder, name = place(graph, found.name)
            weight = getattr(holder, name)
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            found.quantizer.to(memory_format=torch.channels_last)
    return graph
