"""Units of reconstruction: the part of the graph inside one block module, or a layer outside any block."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import takewhile

import networkx
from torch import fx

from qdrop.graph.ops import Role, operation, stack
from qdrop.graph.placement import Wiring, layer_path

Step = Callable[[fx.Node], Iterable[fx.Node]]
Modules = dict[str, int]
"""Paths of modules, and how many of the network's layers each holds."""

LARGEST_SHARE = 0.25
"""Largest share of the network's layers in a block that has blocks inside; beyond, these are the units."""
FEW = 4
"""Layers that may always be one unit."""

FOLDED = "reads or gives a tensor whose first axis is not the images'"


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


Blocks = dict[str, tuple[fx.Node, ...]]
"""Nodes of each block, by the path of its module."""


def find_blocks(
    graph: fx.GraphModule, wiring: Wiring, granularity: str = "block", divided: Callable[[str], bool] = lambda _: False
) -> tuple[Blocks, list[str]]:
    """The blocks of a graph.

    Args:
        graph: The captured graph.
        wiring: Its roles and sites.
        granularity: `block`, or `layer`: only those around layers that cannot be units by themselves.
        divided: Whether the module at a path is to be no block.

    Returns:
        Them, and a note for each module that could not be one.
    """
    layers_inside, folded = _layers_inside(wiring), _folded(wiring)
    working = {path: n for path, n in _working_modules(graph, layers_inside, wiring).items() if not divided(path)}
    around = _around(graph, layers_inside, wiring, folded)
    blocks, notes = _find_blocks(graph, wiring, working | around if granularity == "block" else around, working)
    if granularity == "layer":
        notes += [f"'{path}' is reconstructed as one: a layer inside {FOLDED}" for path in blocks]
    return blocks, notes


def find_units(wiring: Wiring, blocks: Blocks, quantized: list[str]) -> tuple[list[UnitSpec], list[str]]:
    """Cut the graph into units.

    A layer that reads or gives something else than a row for each image, such as windows of it folded into the
    batch, is in the unit of a module around it; where none can be one, it is only rounded to the nearest. A layer that
    is called several times is one unit with all its calls, and with what lies between them.

    Args:
        wiring: Roles and sites of the captured graph.
        blocks: What :func:`find_blocks` found.
        quantized: Node name of every quantizer.

    Returns:
        Units in execution order, and a note for each layer that could not be one.
    """
    folded, notes = _folded(wiring), list[str]()
    block_of = {node: path for path, nodes in blocks.items() for node in nodes}
    candidates: dict[str, _Candidate] = {}
    for layer in wiring.layers:
        path, name = block_of.get(layer), _layer(layer, wiring)
        if path is not None:
            candidates[path] = _Candidate(path, "block", blocks[path])
        elif layer in folded:
            notes.append(f"layer '{name}' {FOLDED}, and is in no unit: it is rounded to the nearest")
        elif name not in candidates:
            calls = tuple(n for n in wiring.layers if _layer(n, wiring) == name and n not in block_of)
            candidates[name] = _Candidate(name, "layer", _extended(calls, wiring, set(block_of)))
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
            joined = replace(first, nodes=_before_reentry(first.nodes, wiring))
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


def _before_reentry(nodes: tuple[fx.Node, ...], wiring: Wiring) -> tuple[fx.Node, ...]:
    """Those of `nodes` that need nothing from outside which needs one of them."""
    kept: set[fx.Node] = set()
    outside: set[fx.Node] = set()
    for node in wiring.nodes:
        needs_outside = any(n in outside for n in node.all_input_nodes)
        if node in nodes and not needs_outside:
            kept.add(node)
        elif needs_outside or any(n in kept for n in node.all_input_nodes):
            outside.add(node)
    return tuple(node for node in nodes if node in kept)


def _find_blocks(
    graph: fx.GraphModule, wiring: Wiring, candidates: Modules, working: Modules
) -> tuple[dict[str, tuple[fx.Node, ...]], list[str]]:
    """Nodes of the outermost candidates that can be units, and a note for each that cannot."""
    blocks: dict[str, tuple[fx.Node, ...]] = {}
    notes: list[str] = []
    for path, layers in sorted(candidates.items(), key=lambda item: item[0].count(".")):  # outer before inner
        if any(_is_inside(path, block) for block in blocks):
            continue
        others = [other for other in candidates if not _is_inside(path, other)]
        claimed = {node for other in others for node in _nodes_inside(graph, other)}
        nodes = _extended(_nodes_inside(graph, path), wiring, claimed)
        within = [other for other in working if other != path and _is_inside(other, path)]
        problem = _cannot_pass(nodes, wiring.activations)
        if len(within) > 1 and layers > LARGEST_SHARE * len(wiring.layers):
            problem = f"holds {layers} of {len(wiring.layers)} layers"
        if problem:
            smaller = "blocks and layers" if within else "layers"
            notes.append(f"block '{path}' {problem}: its {smaller} are reconstructed one by one")
        else:
            blocks[path] = nodes
    return blocks, notes


def _folded(wiring: Wiring) -> list[fx.Node]:
    """Layers that cannot be units by themselves."""
    return [n for n in wiring.layers if _cannot_pass(_extended((n,), wiring, set()), wiring.activations)]


def _layers_inside(wiring: Wiring) -> Modules:
    """All modules that hold layers, but not all layers."""
    counts = Counter(path for layer in wiring.layers for path, _ in _around_layer(layer, wiring))
    return {path: count for path, count in counts.items() if path and count < len(wiring.layers)}


def _around(graph: fx.GraphModule, modules: Modules, wiring: Wiring, layers: list[fx.Node]) -> Modules:
    """Of `modules` the innermost around each of `layers` that can be a unit."""
    found: Modules = {}
    for layer in layers:
        around = (path for path, _ in reversed(_around_layer(layer, wiring)) if path in modules)
        units = (path for path in around if not _cannot_pass(_nodes_inside(graph, path), wiring.activations))
        if (path := next(units, None)) is not None:
            found[path] = modules[path]
    return found


def _working_modules(graph: fx.GraphModule, modules: Modules, wiring: Wiring) -> Modules:
    """Those of `modules` with two or more layers whose class does work of its own somewhere."""
    working = {
        stack(node)[-1][1]
        for node in graph.graph.nodes
        if node.op == "call_function"
        and wiring.roles[node] not in (Role.SIZE, Role.CREATE)
        and operation(node) != "getitem"
        and stack(node)
    }
    classes = {path: cls for layer in wiring.layers for path, cls in _around_layer(layer, wiring)}
    return {path: count for path, count in modules.items() if count >= 2 and classes[path] in working}


def _around_layer(layer: fx.Node, wiring: Wiring) -> list[tuple[str, str]]:
    """Paths and classes of the modules around a layer, outermost first; not the module that is the layer itself."""
    modules, weight = stack(layer), wiring.weight(layer)
    assert weight is not None
    if modules and modules[-1][0] == str(weight.target).rpartition(".")[0]:
        alone = sum(modules[-1][0] in (path for path, _ in stack(other)) for other in wiring.layers) == 1
        return modules[:-1] if alone else modules
    return modules


def _is_inside(path: str, module: str) -> bool:
    """Whether `path` is `module` or inside it."""
    return path == module or path.startswith(f"{module}.")


def _nodes_inside(graph: fx.GraphModule, path: str) -> tuple[fx.Node, ...]:
    return tuple(n for n in graph.graph.nodes if n.op == "call_function" and path in (p for p, _ in stack(n)))


def _extended(nodes: tuple[fx.Node, ...], wiring: Wiring, claimed: set[fx.Node]) -> tuple[fx.Node, ...]:
    """`nodes` and the pointwise functions fused with one of them, if they stand outside, unclaimed and unfolded."""
    chains = (site.chain for site in wiring.sites if site.chain[0] in nodes)

    def joins(node: fx.Node) -> bool:
        return node in nodes or (node not in claimed and bool(node.meta["rows"]))

    fused = (node for chain in chains for node in takewhile(joins, chain))
    return tuple(dict.fromkeys([*nodes, *fused]))


def _cannot_pass(nodes: tuple[fx.Node, ...], activations: set[fx.Node]) -> str:
    """Why what these nodes read or give cannot be kept between units, or ""."""
    read, given = boundary(nodes, activations)
    if not read or not given:
        return "reads nothing, or gives nothing"
    return "" if all(node.meta["rows"] for node in (*read, *given)) else FOLDED


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
