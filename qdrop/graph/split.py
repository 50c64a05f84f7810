"""A quantized network cut into its units, each a module of its own, and what lies between them."""

from collections.abc import Iterable
from dataclasses import dataclass

import networkx
from torch import fx

from qdrop.graph.ops import GraphError, activations, inputs
from qdrop.graph.plan import Plan
from qdrop.graph.units import UnitSpec
from qdrop.graph.units.boundary import boundary


@dataclass(frozen=True)
class Segment:
    """A stretch of the network that runs as one module: a unit, or what lies between two units."""

    name: str
    """Path of the unit's module; for what lies between, the name of its first node."""
    module: fx.GraphModule
    """Takes `inputs` in order; returns a tuple of its outputs. Shares the model's constants and quantizers."""
    inputs: tuple[str, ...]
    """Names of the values it reads."""
    outputs: tuple[str, ...]
    """Names of the values it writes that a later segment, or the caller, reads."""
    unit: UnitSpec | None
    """The unit, or None between units."""


@dataclass
class _Group:
    unit: UnitSpec | None
    nodes: list[fx.Node]


def segments(model: fx.GraphModule, plan: Plan) -> list[Segment]:
    """Cut a quantized model into its units and what lies between them, in an order that can be run.

    Args:
        model: What :func:`qdrop.graph.insert.quantize_graph` returned.
        plan: The plan of that model.

    Returns:
        Segments; the first ones read the model's inputs, each other only what earlier ones wrote.

    Raises:
        GraphError: If a value that one leaves to another has not one row for each image.
    """
    computed = activations(model.graph)
    groups = _in_order(_grouped(model, plan, computed))
    return [_segment(model, group, computed) for group in _merged(groups)]


def _grouped(model: fx.GraphModule, plan: Plan, computed: set[fx.Node]) -> list[_Group]:
    """The nodes of each unit, and single ones between; with each those that read what cannot be kept."""
    given = set(inputs(model.graph))
    unit_of = {name: unit for unit in plan.units for name in unit.nodes}
    of_unit: dict[str, _Group] = {}
    home: dict[fx.Node, _Group] = {}
    groups: list[_Group] = []
    for node in model.graph.nodes:
        if node in given or node not in computed:
            continue
        unit = unit_of.get(node.meta.get("quantizes", node.name))
        bound = [home[n] for n in node.all_input_nodes if n in home and not n.meta["rows"]]
        if unit is not None and unit.module in of_unit:
            group = of_unit[unit.module]
        elif unit is None and bound:
            group = bound[0]
        else:
            group = _Group(unit, [])
            groups.append(group)
            if unit is not None:
                of_unit[unit.module] = group
        group.nodes.append(node)
        home[node] = group
    return groups


def _in_order(groups: list[_Group]) -> list[_Group]:
    """Groups so that each comes after those it reads, else as they are; what needs each other becomes one.

    Raises:
        GraphError: If a unit is among these.
    """
    home = {node: index for index, group in enumerate(groups) for node in group.nodes}
    order = networkx.DiGraph()
    order.add_nodes_from(range(len(groups)))
    for index, group in enumerate(groups):
        read, _ = boundary(group.nodes, set(home))
        order.add_edges_from((home[node], index) for node in read if node in home)
    knots = networkx.condensation(order)
    members = {knot: sorted(found) for knot, found in knots.nodes(data="members")}
    return [
        _joined([groups[index] for index in members[knot]])
        for knot in networkx.lexicographical_topological_sort(knots, key=members.__getitem__)
    ]


def _joined(groups: list[_Group]) -> _Group:
    """One group of several that need each other's results."""
    if len(groups) > 1 and any(group.unit is not None for group in groups):
        raise GraphError(
            "two parts of the network need each other's results with windows folded into the batch between them; try"
            " the other recon.granularity, or round to the nearest (no recon)"
        )
    return _Group(groups[0].unit, [node for group in groups for node in group.nodes])


def _merged(groups: list[_Group]) -> list[_Group]:
    """What lies between two units as one group."""
    merged: list[_Group] = []
    for group in groups:
        if group.unit is None and merged and merged[-1].unit is None:
            merged[-1].nodes.extend(group.nodes)
        else:
            merged.append(_Group(group.unit, list(group.nodes)))
    return merged


def _segment(model: fx.GraphModule, group: _Group, computed: set[fx.Node]) -> Segment:
    inputs, outputs = boundary(group.nodes, computed)
    module = _extract(model, group.nodes, inputs, outputs)
    name = group.nodes[0].name if group.unit is None else group.unit.module
    for node in outputs:
        if not node.meta["rows"]:
            raise GraphError(
                f"'{node.name}' leaves '{name}' and is not one tensor with a row for each image: nothing else can be"
                " kept from one unit to the next; try the other recon.granularity, or round to the nearest (no recon)"
            )
    return Segment(name, module, tuple(n.name for n in inputs), tuple(n.name for n in outputs), group.unit)


def _extract(
    model: fx.GraphModule, nodes: Iterable[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node]
) -> fx.GraphModule:
    """A module of `nodes` alone; its constants and quantizers are the model's own."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # a node of the segment, a parameter or a size
            copies[node] = graph.node_copy(node, copy_of)
        return copies[node]

    for node in nodes:
        copy_of(node)
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(model, graph)


def reads(parts: list[Segment]) -> dict[str, int]:
    """Index of the last segment that reads each value; a value without a reader is not listed."""
    return {name: index for index, part in enumerate(parts) for name in part.inputs}
