"""From a graph and its plan to a model that quantizes, and to its units as modules of their own."""

from dataclasses import dataclass

import torch
from torch import fx

from qdrop.quantization.fake_quant import build_quantizer
from qdrop.quantization.ops import GraphError, activations, module_of
from qdrop.quantization.plan import Plan
from qdrop.quantization.quantized_module import QUANTIZED, QConv2d, float_type
from qdrop.quantization.spec import Kind, QuantizerSpec
from qdrop.quantization.units import UnitSpec, boundary, has_a_row_per_image


@dataclass(frozen=True)
class Segment:
    """A stretch of the network that runs as one module: a unit, or what lies between two units."""

    name: str
    """Path of the unit's module; for what lies between, the name of its first node."""
    module: fx.GraphModule
    """Takes `inputs` in order; returns its one output, or a tuple of them. Shares the model's layers."""
    inputs: tuple[str, ...]
    """Names of the values it reads."""
    outputs: tuple[str, ...]
    """Names of the values it writes that a later segment, or the caller, reads."""
    unit: UnitSpec | None
    """The unit, or None between units."""


def quantize_graph(graph: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """Put the plan's quantizers into a traced graph, in place. They are off until a scope switches them on.

    Args:
        graph: What :func:`qdrop.quantization.graph.trace` returned; its layers' parameters are shared.
        plan: The plan of that graph.

    Returns:
        `graph`, with quantized layers and a quantizer behind every quantized activation. Switched off it
        computes what it did before. `graph.meta["plan"]` is the plan.

    Raises:
        ValueError: If the plan is of another graph.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    missing = [spec.name for spec in plan.quantizers if spec.node not in nodes]
    if missing:
        raise ValueError(f"the plan is of another network: nothing here for {', '.join(missing[:5])}")
    for spec in plan.quantizers:
        put = _quantize_weight if spec.kind is Kind.WEIGHT else _quantize_activation
        put(graph, nodes[spec.node], spec)
    graph.graph.lint()
    graph.recompile()
    graph.meta["plan"] = plan
    return channels_last(graph)


def channels_last(graph: fx.GraphModule) -> fx.GraphModule:
    """Lay the weights of convolutions out in memory as `[O, kH, kW, I]`, in place; activations follow them.

    That is the layout that convolutions are fastest in, on a CPU by up to two times.
    """
    for layer in graph.modules():
        if isinstance(layer, QConv2d):
            layer.to(memory_format=torch.channels_last)
    return graph


def _quantize_weight(graph: fx.GraphModule, node: fx.Node, spec: QuantizerSpec) -> None:
    layer = module_of(node)
    kind = None if layer is None else float_type(layer)
    if layer is None or kind is None:
        raise ValueError(f"the plan is of another network: {spec.node} is not a layer here")
    graph.set_submodule(str(node.target), QUANTIZED[kind].from_float(layer, build_quantizer(spec)))


def _quantize_activation(graph: fx.GraphModule, node: fx.Node, spec: QuantizerSpec) -> None:
    graph.add_submodule(spec.name, build_quantizer(spec))
    with graph.graph.inserting_after(node):
        quantizer = graph.graph.call_module(spec.name, (node,))
    quantizer.meta = {**node.meta, "quantizes": node.name}
    node.replace_all_uses_with(quantizer, delete_user_cb=lambda user: user is not quantizer)


def segments(model: fx.GraphModule, plan: Plan) -> list[Segment]:
    """Cut a quantized model into its units and what lies between them, in an order that can be run.

    Args:
        model: What :func:`quantize_graph` returned.
        plan: The plan of that model.

    Returns:
        Segments; the first reads the model's input, each other only what earlier ones wrote.

    Raises:
        GraphError: If a value that one leaves to another has not one row for each image.
    """
    unit_of = {name: unit for unit in plan.units for name in unit.nodes}
    computed = activations(model.graph)
    groups: list[tuple[UnitSpec | None, list[fx.Node]]] = []
    of_unit: dict[str, list[fx.Node]] = {}
    home: dict[fx.Node, list[fx.Node]] = {}
    for node in model.graph.nodes:
        if node.op in ("placeholder", "output") or node not in computed:
            continue
        unit = unit_of.get(node.meta.get("quantizes", node.name))
        read = [n for n in node.all_input_nodes if n in computed]
        if unit is None and len(read) == 1 and not has_a_row_per_image(read[0]):  # such a value is not passed on
            group = home[read[0]]
        elif unit is not None and unit.module in of_unit:
            group = of_unit[unit.module]
        elif unit is None and groups and groups[-1][0] is None:
            group = groups[-1][1]
        else:
            group = []
            groups.append((unit, group))
            if unit is not None:
                of_unit[unit.module] = group
        group.append(node)
        home[node] = group
    return [_segment(model, unit, nodes, computed) for unit, nodes in groups]


def _segment(model: fx.GraphModule, unit: UnitSpec | None, nodes: list[fx.Node], computed: set[fx.Node]) -> Segment:
    inputs, outputs = boundary(nodes, computed)
    module = _extract(model, nodes, inputs, outputs)
    name = nodes[0].name if unit is None else unit.module
    for node in outputs:
        if not has_a_row_per_image(node):
            raise GraphError(
                f"'{node.name}' leaves '{name}' and is not one tensor with a row for each image: nothing else can be"
                " kept from one unit to the next; try the other recon.granularity, or round to the nearest (no recon)"
            )
    return Segment(name, module, tuple(n.name for n in inputs), tuple(n.name for n in outputs), unit)


def _extract(
    model: fx.GraphModule, nodes: list[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node]
) -> fx.GraphModule:
    """A module of `nodes` alone; its layers are the model's own."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # a node of the segment, a parameter or a size
            copies[node] = graph.node_copy(node, copy_of)
        return copies[node]

    for node in nodes:
        copy_of(node)
    results = tuple(copies[node] for node in outputs)
    graph.output(results[0] if len(results) == 1 else results)
    return fx.GraphModule(model, graph)


def reads(parts: list[Segment]) -> dict[str, int]:
    """Index of the last segment that reads each value; a value without a reader is not listed."""
    return {name: index for index, part in enumerate(parts) for name in part.inputs}
