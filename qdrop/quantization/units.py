"""Units of reconstruction: the part of the graph inside one block module, or a layer outside any block."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor, fx, nn

from qdrop.quantization.ops import operation
from qdrop.quantization.sites import Wiring

Step = Callable[[fx.Node], Iterable[fx.Node]]
Modules = dict[str, int]
"""Paths of modules, and how many of the network's layers each holds."""

LARGEST_SHARE = 0.25
"""Largest share of the network's layers in a block that has blocks inside; beyond, these are the units."""

FOLDED = "reads or gives a tensor whose first axis is not the images'"

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

    A layer that reads or gives something else than a row for each image, such as windows of it folded into the
    batch, is in the unit of a module around it; where none can be one, it is only rounded to the nearest.

    Args:
        graph: The traced graph.
        wiring: Its roles and sites.
        quantized: Node name of every quantizer (a layer's twice if its output is quantized too).
        granularity: `block` or `layer`.

    Returns:
        Units in execution order, and a note for each block or layer that could not be one.
    """
    layers_inside, folded = _layers_inside(wiring), _folded(wiring)
    working = _working_modules(graph, layers_inside, wiring)
    around = _around(graph, layers_inside, wiring, folded)
    blocks, notes = _find_blocks(graph, wiring, working | around if granularity == "block" else around, working)
    if granularity == "layer":
        notes += [f"'{path}' is reconstructed as one: a layer inside {FOLDED}" for path in blocks]
    block_of = {node: path for path, nodes in blocks.items() for node in nodes}
    candidates: dict[str, _Candidate] = {}
    for layer in wiring.layers:
        path = block_of.get(layer)
        if path is None and layer in folded:
            notes.append(f"layer '{layer.target}' {FOLDED}, and is in no unit: it is rounded to the nearest")
        elif path is None:
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
        problem = _not_one_tensor(nodes, wiring.activations)
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
    return [n for n in wiring.layers if _not_one_tensor(_extended((n,), wiring, set()), wiring.activations)]


def _layers_inside(wiring: Wiring) -> Modules:
    """All modules that hold layers, but not all layers."""
    counts = Counter(path for layer in wiring.layers for path, _ in _stack(layer)[:-1])
    return {path: count for path, count in counts.items() if count < len(wiring.layers)}


def _around(graph: fx.GraphModule, modules: Modules, wiring: Wiring, layers: list[fx.Node]) -> Modules:
    """Of `modules` the innermost around each of `layers` that can be a unit."""
    found: Modules = {}
    for layer in layers:
        around = (path for path, _ in reversed(_stack(layer)[:-1]) if path in modules)
        units = (path for path in around if not _not_one_tensor(_nodes_inside(graph, path), wiring.activations))
        if (path := next(units, None)) is not None:
            found[path] = modules[path]
    return found


def _working_modules(graph: fx.GraphModule, modules: Modules, wiring: Wiring) -> Modules:
    """Those of `modules` with two or more layers whose class does work of its own somewhere."""
    working = {
        stack[-1][1]
        for node in graph.graph.nodes
        if node.op in ("call_function", "call_method") and operation(node) not in _INSPECTIONS
        for stack in [_stack(node)]
        if stack
    }
    classes = {path: cls for layer in wiring.layers for path, cls in _stack(layer)[:-1]}
    return {path: count for path, count in modules.items() if count >= 2 and classes[path] in working}


def _is_inside(path: str, module: str) -> bool:
    """Whether `path` is `module` or inside it."""
    return path == module or path.startswith(f"{module}.")


def _stack(node: fx.Node) -> list[tuple[str, type[nn.Module]]]:
    """Paths and classes of the modules around a node, outermost first, itself last if it is a module."""
    return list(node.meta.get("nn_module_stack", {}).values())


def _nodes_inside(graph: fx.GraphModule, path: str) -> tuple[fx.Node, ...]:
    return tuple(n for n in graph.graph.nodes if n.op != "get_attr" and path in (p for p, _ in _stack(n)))


def _extended(nodes: tuple[fx.Node, ...], wiring: Wiring, claimed: set[fx.Node]) -> tuple[fx.Node, ...]:
    """`nodes` and the pointwise functions fused with one of them, if they stand outside, unclaimed and unfolded."""
    chains = (site.chain for site in wiring.sites if site.chain[0] in nodes)

    def joins(node: fx.Node) -> bool:
        return node in nodes or (node not in claimed and has_a_row_per_image(node))

    fused = (node for chain in chains for node in takewhile(joins, chain))
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
    return "" if all(map(has_a_row_per_image, (*inputs, *outputs))) else FOLDED


def has_a_row_per_image(node: fx.Node) -> bool:
    """Whether a value is one tensor whose first axis is as long as that of the images: nothing is folded into it."""
    image = next(iter(node.graph.find_nodes(op="placeholder")))
    one = issubclass(node.meta["type"], Tensor)
    return one and bool(node.meta["tensor_meta"].shape[:1] == image.meta["tensor_meta"].shape[:1])


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
