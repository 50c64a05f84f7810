"""Units of reconstruction: the part of the graph inside one block module, or a layer outside any block."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import networkx
from torch import fx

from qdrop.graph.placement import Wiring, layer_path
from qdrop.graph.units.blocks import LARGEST_SHARE, Blocks, extended, folded
from qdrop.graph.units.boundary import FOLDED

FEW = 4
"""Layers that may always be one unit."""


@dataclass(frozen=True)
class UnitSpec:
    """One unit: takes one tensor or more, gives one tensor or more."""

    module: str
    """Path of the block or layer."""
    kind: str
    """`block` or `layer`."""
    weights: int
    """Quantized weights inside."""
    activation_quantizers: int
    """Quantized activations inside, its outputs included."""
    nodes: tuple[str, ...]
    """Graph nodes, in execution order; those of its weights first."""


@dataclass(frozen=True)
class _Candidate:
    module: str
    kind: str
    nodes: tuple[fx.Node, ...]


def find_units(wiring: Wiring, blocks: Blocks, quantized: list[str]) -> tuple[list[UnitSpec], list[str]]:
    """Cut the graph into units.

    A layer that reads or gives something else than a row for each image, such as windows of it folded into the
    batch, is in the unit of a module around it; where none can be one, it is only rounded to the nearest. A layer that
    is called several times is one unit with all its calls, and with what lies between them.

    Args:
        wiring: Roles and sites of the captured graph.
        blocks: What :func:`qdrop.graph.units.blocks.find_blocks` found.
        quantized: Node name of every quantizer.

    Returns:
        Units in execution order, and a note for each layer that could not be one.
    """
    alone, notes = folded(wiring), list[str]()
    block_of = {node: path for path, nodes in blocks.items() for node in nodes}
    candidates: dict[str, _Candidate] = {}
    for layer in wiring.layers:
        path, name = block_of.get(layer), _layer(layer, wiring)
        if path is not None:
            candidates[path] = _Candidate(path, "block", blocks[path])
        elif layer in alone:
            notes.append(f"layer '{name}' {FOLDED}, and is in no unit: it is rounded to the nearest")
        elif name not in candidates:
            calls = tuple(n for n in wiring.layers if _layer(n, wiring) == name and n not in block_of)
            candidates[name] = _Candidate(name, "layer", extended(calls, wiring, set(block_of)))
    found, more = _untangled(list(candidates.values()), wiring)
    weights_of = _Weights(wiring)
    return [_spec(candidate, weights_of.first_read(candidate.nodes), quantized) for candidate in found], notes + more


def _layer(product: fx.Node, wiring: Wiring) -> str:
    weight = wiring.weight(product)
    assert weight is not None
    return layer_path(weight)


class _Weights:
    """Hands out each weight once: to the unit that reads it first."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._taken: set[fx.Node] = set()

    def first_read(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        read = [self._wiring.weight(node) for node in nodes if node in self._wiring.layers]
        new = tuple(w for w in dict.fromkeys(read) if w is not None and w not in self._taken)
        self._taken.update(new)
        return tuple(node for node in self._wiring.nodes if node in new)


def _spec(candidate: _Candidate, weights: tuple[fx.Node, ...], quantized: list[str]) -> UnitSpec:
    names = tuple(node.name for node in candidate.nodes)
    inside = sum(node in names for node in quantized)
    return UnitSpec(candidate.module, candidate.kind, len(weights), inside, (*(node.name for node in weights), *names))


def _untangled(candidates: list[_Candidate], wiring: Wiring) -> tuple[list[_Candidate], list[str]]:
    """Candidates that can run one after another: those that need each other's results are joined, or cut short.

    Args:
        candidates: Units to be, in execution order.
        wiring: Roles and layers of the graph.
    """
    notes: list[str] = []
    most = max(FEW, LARGEST_SHARE * len(wiring.layers))
    while tangle := _tangle(candidates, wiring):
        inside = [candidate for candidate in candidates if tangle.intersection(candidate.nodes)]
        nodes = tuple(node for node in wiring.nodes if node in tangle)
        first = inside[0]
        if sum(node in wiring.layers for node in nodes) <= most:
            joined = replace(first, kind="block", nodes=nodes)
        else:
            joined = replace(first, nodes=_needing_none(first.nodes, tangle, wiring))
            notes.append(f"'{first.module}' is called again behind other layers: it learns on its first calls alone")
            inside = [first]
        candidates = [joined if c is first else c for c in candidates if c is first or c not in inside]
    return candidates, notes


def _tangle(candidates: list[_Candidate], wiring: Wiring) -> set[fx.Node]:
    """Nodes of some candidates, and between them, of which none can run as a whole before the others; else nothing."""
    group = {node: candidate.module for candidate in candidates for node in candidate.nodes}
    quotient = networkx.DiGraph()
    for node in wiring.nodes:
        quotient.add_edges_from((group.get(n, n), group.get(node, node)) for n in node.all_input_nodes)
    for component in networkx.strongly_connected_components(quotient):
        if len(component) > 1:
            return {node for node in wiring.nodes if group.get(node, node) in component}
    return set()


def _needing_none(nodes: tuple[fx.Node, ...], tangle: set[fx.Node], wiring: Wiring) -> tuple[fx.Node, ...]:
    """Those of `nodes` that need nothing of the rest of a tangle; some, not all, where they hold its first node."""
    needing = tangle.difference(nodes)
    for node in wiring.nodes:
        if needing.intersection(node.all_input_nodes):
            needing.add(node)
    return tuple(node for node in nodes if node not in needing)
