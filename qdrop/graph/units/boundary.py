"""What a part of a graph reads from the rest of it, and gives to it."""

from collections.abc import Callable, Iterable

from torch import fx

Step = Callable[[fx.Node], Iterable[fx.Node]]

FOLDED = "reads or gives a tensor whose first axis is not the images'"


def cannot_pass(nodes: tuple[fx.Node, ...], activations: set[fx.Node]) -> str:
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
