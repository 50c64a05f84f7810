"""Units of reconstruction: the part of the graph inside one block module, or a layer outside any block."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor, fx, nn

from qdrop.quantization.ops import operation
from qdrop.quantization.sites import Wiring

Step = Callable[[fx.Node], Iterable[fx.Node]]
Blocks = dict[str, tuple[fx.Node, ...]]
"""Nodes of each block by its path."""

LARGEST_SHARE = 0.25
"""Largest share of the network's layers in a block that has blocks inside; beyond, these are the units."""

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
        Units in execution order, and a note for each block or layer that could not be one. A layer that is in
        none, as no module around it could be one, is only rounded to the nearest.
    """
    blocks, notes = _find_blocks(graph, wiring) if granularity == "block" else ({}, [])
    blocks, alone, more = _enclose(graph, wiring, blocks)
    block_of = {node: path for path, nodes in blocks.items() for node in nodes}
    candidates: dict[str, _Candidate] = {}
    for layer in wiring.layers:
        path = block_of.get(layer)
        if layer in alone:
            continue
        if path is None:
            nodes = _extended((layer,), wiring, set(block_of))
            candidates[str(layer.target)] = _Candidate(str(layer.target), "layer", nodes)
        else:
            candidates[path] = _Candidate(path, "block", blocks[path])
    return [_spec(candidate, wiring, quantized) for candidate in candidates.values()], [*notes, *more]


def _spec(candidate: _Candidate, wiring: Wiring, quantized: list[str]) -> UnitSpec:
    names = tuple(node.name for node in candidate.nodes)
    weights = sum(node in wiring.layers for node in candidate.nodes)
    quantizers = sum(node in names for node in quantized)
    return UnitSpec(candidate.module, candidate.kind, weights, quantizers - weights, names)


def _find_blocks(graph: fx.GraphModule, wiring: Wiring) -> tuple[Blocks, list[str]]:
    """Nodes of the outermost modules that can be units, and a note for each that cannot."""
    layers_inside = _working_modules(graph, wiring)
    blocks: Blocks = {}
    notes: list[str] = []
    for path, layers in layers_inside.items():  # an outer module comes before those inside it
        if any(_is_inside(path, block) for block in blocks):
            continue
        others = [other for other in layers_inside if not _is_inside(path, other)]
        claimed = {node for other in others for node in _nodes_inside(graph, other)}
        nodes = _extended(_nodes_inside(graph, path), wiring, claimed)
        within = [other for other in layers_inside if other != path and _is_inside(other, path)]
        problem = _not_one_tensor(nodes, wiring.activations)
        if len(within) > 1 and layers > LARGEST_SHARE * len(wiring.layers):
            problem = f"holds {layers} of {len(wiring.layers)} layers"
        if problem:
            smaller = "blocks and layers" if within else "layers"
            notes.append(f"block '{path}' {problem}: its {smaller} are reconstructed one by one")
        else:
            blocks[path] = nodes
    return blocks, notes


def _enclose(graph: fx.GraphModule, wiring: Wiring, blocks: Blocks) -> tuple[Blocks, set[fx.Node], list[str]]:
    """Around each layer that cannot be a unit, such as one on windows of the image, the innermost module that can.

    Returns:
        The blocks with these modules, in place of what is inside them; layers without such a module; notes.
    """
    blocks, alone, notes = dict(blocks), set[fx.Node](), list[str]()
    for layer in wiring.layers:
        problem = _not_one_tensor(_extended((layer,), wiring, set()), wiring.activations)
        if not problem or any(layer in nodes for nodes in blocks.values()):
            continue
        claimed = {node for nodes in blocks.values() for node in nodes}
        paths = (path for path, _ in reversed(_stack(layer)[:-1]))
        around = ((path, _extended(_nodes_inside(graph, path), wiring, claimed)) for path in paths)
        units = ((path, nodes) for path, nodes in around if not _not_one_tensor(nodes, wiring.activations))
        path, nodes = next(units, ("", ()))
        if path:
            blocks = {block: inside for block, inside in blocks.items() if not _is_inside(block, path)} | {path: nodes}
        else:
            alone.add(layer)
        what = f"'{path}' around it is reconstructed as one" if path else "it is rounded to the nearest"
        notes.append(f"layer '{layer.target}' {problem}: {what}")
    return blocks, alone, notes


def _working_modules(graph: fx.GraphModule, wiring: Wiring) -> dict[str, int]:
    """Layers inside each module with two or more, but not all, whose class does work of its own somewhere."""
    working = {
        stack[-1][1]
        for node in graph.graph.nodes
        if node.op in ("call_function", "call_method") and operation(node) not in _INSPECTIONS
        for stack in [_stack(node)]
        if stack
    }
    layers_inside: dict[str, int] = {}
    for layer in wiring.layers:
        for path, cls in _stack(layer)[:-1]:
            if cls in working:
                layers_inside[path] = layers_inside.get(path, 0) + 1
    return {path: count for path, count in layers_inside.items() if 2 <= count < len(wiring.layers)}


def _is_inside(path: str, module: str) -> bool:
    """Whether `path` is `module` or inside it."""
    return path == module or path.startswith(f"{module}.")


def _stack(node: fx.Node) -> list[tuple[str, type[nn.Module]]]:
    """Paths and classes of the modules around a node, outermost first, itself last if it is a module."""
    return list(node.meta.get("nn_module_stack", {}).values())


def _nodes_inside(graph: fx.GraphModule, path: str) -> tuple[fx.Node, ...]:
    return tuple(n for n in graph.graph.nodes if n.op != "get_attr" and path in (p for p, _ in _stack(n)))


def _extended(nodes: tuple[fx.Node, ...], wiring: Wiring, claimed: set[fx.Node]) -> tuple[fx.Node, ...]:
    """`nodes` and the pointwise functions fused with one of them, if they stand outside and unclaimed."""
    chains = (site.chain for site in wiring.sites if site.chain[0] in nodes)
    fused = (node for chain in chains for node in takewhile(lambda n: n in nodes or n not in claimed, chain))
    return tuple(dict.fromkeys([*nodes, *fused]))


def _not_one_tensor(nodes: tuple[fx.Node, ...], activations: set[fx.Node]) -> str:
    """Why these nodes cannot be a unit, or ""."""
    inputs, outputs = boundary(nodes, activations)
    if len(inputs) != 1:
        return f"reads {len(inputs)} values"
    if len(outputs) != 1:
        return f"gives {len(outputs)} values"
    if not all(issubclass(node.meta["type"], Tensor) for node in (*inputs, *outputs)):
        return "passes several tensors as one value"
    return "" if all(map(has_a_row_per_image, (*inputs, *outputs))) else "works on other rows than one for each image"


def has_a_row_per_image(node: fx.Node) -> bool:
    """Whether a tensor's first axis is that of the images, and not longer by windows, or heads, that are folded in."""
    image = next(iter(node.graph.find_nodes(op="placeholder")))
    rows: bool = node.meta["tensor_meta"].shape[:1] == image.meta["tensor_meta"].shape[:1]
    return rows


def boundary(nodes: Iterable[fx.Node], activations: set[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """Activations that `nodes` read from outside, and their own that are read outside.

    Sizes, and what is computed from sizes and parameters alone, do not count: they are computed where they
    are read, from the activations behind them.
    """
    inside = dict.fromkeys(nodes)
    own = [node for node in inside if node in activations]
    read = [value for node in own for value in _reached(node.all_input_nodes, _inputs, activations)]
    outputs = [node for node in own if any(n not in inside for n in _reached(node.users, _users, activations))]
    return [node for node in dict.fromkeys(read) if node not in inside], outputs


def _reached(nodes: Iterable[fx.Node], step: Step, activations: set[fx.Node]) -> list[fx.Node]:
    """Those of `nodes` that are activations or the network's output, and for the others those behind them."""
    return [
        found
        for node in nodes
        for found in ([node] if node in activations or node.op == "output" else _reached(step(node), step, activations))
    ]


def _inputs(node: fx.Node) -> Iterable[fx.Node]:
    return node.all_input_nodes


def _users(node: fx.Node) -> Iterable[fx.Node]:
    return node.users
