"""Blocks: the outermost modules around two layers or more that do work of their own and can be one unit."""

from collections import Counter
from collections.abc import Callable
from itertools import takewhile

from torch import fx

from qdrop.graph.ops import Role, operation, stack
from qdrop.graph.placement import Wiring
from qdrop.graph.units.boundary import FOLDED, cannot_pass

Modules = dict[str, int]
"""Paths of modules, and how many of the network's layers each holds."""
Blocks = dict[str, tuple[fx.Node, ...]]
"""Nodes of each block, by the path of its module."""

LARGEST_SHARE = 0.25
"""Largest share of the network's layers in a block that has blocks inside; beyond, these are the units."""


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
    layers_inside, alone = _layers_inside(wiring), folded(wiring)
    working = {path: n for path, n in _working_modules(graph, layers_inside, wiring).items() if not divided(path)}
    around = _around(graph, layers_inside, wiring, alone)
    blocks, notes = _find_blocks(graph, wiring, working | around if granularity == "block" else around, working)
    if granularity == "layer":
        notes += [f"'{path}' is reconstructed as one: a layer inside {FOLDED}" for path in blocks]
    return blocks, notes


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
        nodes = extended(_nodes_inside(graph, path), wiring, claimed)
        within = [other for other in working if other != path and _is_inside(other, path)]
        problem = cannot_pass(nodes, wiring.activations)
        if len(within) > 1 and layers > LARGEST_SHARE * len(wiring.layers):
            problem = f"holds {layers} of {len(wiring.layers)} layers"
        if problem:
            smaller = "blocks and layers" if within else "layers"
            notes.append(f"block '{path}' {problem}: its {smaller} are reconstructed one by one")
        else:
            blocks[path] = nodes
    return blocks, notes


def folded(wiring: Wiring) -> list[fx.Node]:
    """Layers that cannot be units by themselves."""
    return [n for n in wiring.layers if cannot_pass(extended((n,), wiring, set()), wiring.activations)]


def _layers_inside(wiring: Wiring) -> Modules:
    """All modules that hold layers, but not all layers."""
    counts = Counter(path for layer in wiring.layers for path, _ in _around_layer(layer, wiring))
    return {path: count for path, count in counts.items() if path and count < len(wiring.layers)}


def _around(graph: fx.GraphModule, modules: Modules, wiring: Wiring, layers: list[fx.Node]) -> Modules:
    """Of `modules` the innermost around each of `layers` that can be a unit."""
    found: Modules = {}
    for layer in layers:
        around = (path for path, _ in reversed(_around_layer(layer, wiring)) if path in modules)
        units = (path for path in around if not cannot_pass(_nodes_inside(graph, path), wiring.activations))
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


def extended(nodes: tuple[fx.Node, ...], wiring: Wiring, claimed: set[fx.Node]) -> tuple[fx.Node, ...]:
    """`nodes` and the pointwise functions fused with one of them, if they stand outside, unclaimed and unfolded."""
    chains = (site.chain for site in wiring.sites if site.chain[0] in nodes)

    def joins(node: fx.Node) -> bool:
        return node in nodes or (node not in claimed and bool(node.meta["rows"]))

    fused = (node for chain in chains for node in takewhile(joins, chain))
    return tuple(dict.fromkeys([*nodes, *fused]))
