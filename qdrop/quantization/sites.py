"""Where activations are produced and who reads them: the rules of quantizer placement."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from qdrop.quantization.graph import owner
from qdrop.quantization.ops import Role, clips, operation, role

PRODUCERS = (Role.WEIGHTED, Role.ADD, Role.ARITHMETIC, Role.NORM)
"""Roles whose output is a new activation. So is that of an activation function that bends what it reads."""


@dataclass(frozen=True)
class Site:
    """A place where a new activation appears."""

    name: str
    """What produces it: the path of a layer, or the owning module and the operation (`layer1.0.add`)."""
    chain: tuple[fx.Node, ...]
    """The producer and the activation function fused with it."""
    readers: tuple[fx.Node, ...]
    """Who computes something new from it, reached through nodes that only move, pool or select values."""
    needed: bool
    """Whether it is quantized: not if it only goes into adds or out of the network."""

    @property
    def node(self) -> fx.Node:
        """The node whose value is quantized."""
        return self.chain[-1]


class Wiring:
    """Roles, layers and sites of a traced graph.

    Args:
        graph: What :func:`qdrop.quantization.graph.trace` returned.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        nodes = list(graph.graph.nodes)
        self.roles: dict[fx.Node, Role] = {}
        activations: set[fx.Node] = set()
        for node in nodes:
            if node.op == "placeholder" or (
                holds_tensor(node) and activations.intersection(node.all_input_nodes)
            ):
                activations.add(node)
            self.roles[node] = role(node, activations)
        self.layers = [node for node in nodes if self.roles[node] is Role.WEIGHTED]
        self.sites = list(self._find_sites(nodes))

    def _find_sites(self, nodes: list[fx.Node]) -> Iterator[Site]:
        fused: set[fx.Node] = set()
        taken: Counter[str] = Counter()
        for node in nodes:
            if node in fused or not self._produces(node):
                continue
            chain = self._chain(node)
            fused.update(chain)
            name = _name(node)
            taken[name] += 1
            unique = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
            readers = tuple(self._readers(chain[-1]))
            needed = any(r.op != "output" and self.roles[r] is not Role.ADD for r in readers)
            yield Site(unique, chain, readers, needed)

    def _produces(self, node: fx.Node) -> bool:
        bends = self.roles[node] is Role.ACTIVATION and not clips(node)
        return bends or self.roles[node] in PRODUCERS

    def _chain(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """`node` and, where it is all that reads `node`, the activation function behind it."""
        users = list(node.users)
        follows = len(users) == 1 and self.roles[users[0]] is Role.ACTIVATION
        return (node, users[0]) if follows and self.roles[node] is not Role.ACTIVATION else (node,)

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        seen: set[fx.Node] = set()
        waiting = list(node.users)
        while waiting:
            user = waiting.pop(0)
            if user in seen:
                continue
            seen.add(user)
            if user.op == "output" or self._produces(user):
                yield user
            elif holds_tensor(user):
                waiting.extend(user.users)


def holds_tensor(node: fx.Node) -> bool:
    """Whether the node's value is a tensor or several, rather than a size."""
    meta = node.meta.get("tensor_meta")
    return node.meta.get("type") is Tensor or meta is not None


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    return f"{owner(node)}.{operation(node)}".lstrip(".")
