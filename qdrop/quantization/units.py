"""Units of reconstruction: the part of the graph inside one block module, or a layer outside any block."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx, nn

from qdrop.quantization.ops import operation
from qdrop.quantization.sites import Wiring, holds_tensor

_INSPECTIONS = {"size", "dim", "getattr", "getitem", "ndim", "numel", "eq", "int"}
"""Operations that look at a value without working on it."""


@dataclass(frozen=True)
class UnitSpec:
    """One unit: takes one tensor, gives one tensor."""

    module: str
    """Path of the block or layer."""
    kind: str
    """`block` or `layer`."""
    weights: int
    """Quantized weights inside."""
    activation_quantizers: int
    """Quantized activations inside, its output included."""
    nodes: tuple[str, ...]
    """Graph nodes, in execution order."""


@dataclass(frozen=True)
class _Candidate:
    module: str
    kind: str
    nodes: tuple[fx.Node, ...]


def find_units(
    graph: fx.GraphModule, wiring: Wiring, quantized: list[str], granularity: str
) -> tuple[list[UnitSpec], list[str]]:
    """Cut the graph into units.

    Args:
        graph: The traced graph.
        wiring: Its roles and sites.
        quantized: Node name of every quantizer (a layer's twice if its output is quantized too).
        granularity: `block` or `layer`.

    Returns:
        Units in execution order, and a note for each block that fell back to its layers.
    """
    notes: list[str] = []
    blocks: dict[str, tuple[fx.Node, ...]] = {}
    if granularity == "block":
        inside = {path: _nodes_inside(graph, path) for path in _block_paths(graph, wiring)}
        claimed = {node for nodes in inside.values() for node in nodes}
        for path, nodes in inside.items():
            blocks[path] = _extended(nodes, wiring, claimed)
            problem = _not_one_tensor(blocks[path])
            if problem:
                notes.append(f"block '{path}' {problem}: its layers are reconstructed one by one")
                del blocks[path]
    block_of = {node: path for path, nodes in blocks.items() for node in nodes}
    candidates: dict[str, _Candidate] = {}
    for layer in wiring.layers:
        path = block_of.get(layer)
        if path is None:
            nodes = _extended((layer,), wiring, set(block_of))
            candidates[str(layer.target)] = _Candidate(str(layer.target), "layer", nodes)
        else:
            candidates[path] = _Candidate(path, "block", blocks[path])
    return [_spec(candidate, wiring, quantized) for candidate in candidates.values()], notes


def _spec(candidate: _Candidate, wiring: Wiring, quantized: list[str]) -> UnitSpec:
    names = tuple(node.name for node in candidate.nodes)
    weights = sum(node in wiring.layers for node in candidate.nodes)
    quantizers = sum(node in names for node in quantized)
    return UnitSpec(candidate.module, candidate.kind, weights, quantizers - weights, names)


def _block_paths(graph: fx.GraphModule, wiring: Wiring) -> list[str]:
    """Outermost modules with two or more layers, but not all, whose class does work of its own somewhere."""
    working = {
        stack[-1][1]
        for node in graph.graph.nodes
        if node.op in ("call_function", "call_method") and operation(node) not in _INSPECTIONS
        for stack in [_stack(node)]
        if stack
    }
    layers_inside: dict[str, int] = {}
    classes: dict[str, type[nn.Module]] = {}
    for layer in wiring.layers:
        for path, cls in _stack(layer)[:-1]:
            layers_inside[path] = layers_inside.get(path, 0) + 1
            classes[path] = cls
    paths: list[str] = []
    for path, count in layers_inside.items():  # an outer module comes before those inside it
        whole = count == len(wiring.layers)
        nested = any(path.startswith(f"{outer}.") for outer in paths)
        if classes[path] in working and count >= 2 and not whole and not nested:
            paths.append(path)
    return paths


def _stack(node: fx.Node) -> list[tuple[str, type[nn.Module]]]:
    """Paths and classes of the modules around a node, outermost first, itself last if it is a module."""
    return list(node.meta.get("nn_module_stack", {}).values())


def _nodes_inside(graph: fx.GraphModule, path: str) -> tuple[fx.Node, ...]:
    return tuple(n for n in graph.graph.nodes if n.op != "get_attr" and path in (p for p, _ in _stack(n)))


def _extended(nodes: tuple[fx.Node, ...], wiring: Wiring, claimed: set[fx.Node]) -> tuple[fx.Node, ...]:
    """`nodes` and the activation function fused with one of them, if it stands outside and unclaimed."""
    chains = (site.chain for site in wiring.sites if site.chain[0] in nodes)
    outside = (node for chain in chains for node in chain if node not in claimed)
    return tuple(dict.fromkeys([*nodes, *outside]))


def _not_one_tensor(nodes: tuple[fx.Node, ...]) -> str:
    """Why these nodes cannot be a unit, or ""."""
    inputs, outputs = boundary(nodes)
    if len(inputs) != 1:
        return f"reads {len(inputs)} values"
    if len(outputs) != 1:
        return f"gives {len(outputs)} values"
    return (
        "" if holds_tensor(inputs[0]) and holds_tensor(outputs[0]) else "passes something else than a tensor"
    )


def boundary(nodes: Iterable[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """Values that `nodes` read from outside (parameters aside), and their own that are read outside."""
    inside = dict.fromkeys(nodes)

    def is_outside(node: fx.Node) -> bool:
        return node not in inside and node.op != "get_attr"

    inputs = dict.fromkeys(read for node in inside for read in node.all_input_nodes if is_outside(read))
    outputs = [node for node in inside if any(user not in inside for user in node.users)]
    return list(inputs), outputs
