"""Where activations are produced and who reads them: the rules of quantizer placement."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from qdrop.quantization.ops import Role, activations, clips, moves, operation, owner, role

PRODUCERS = (Role.WEIGHTED, Role.ADD, Role.ARITHMETIC, Role.NORM)
"""Roles whose output is a new activation. So is that of a pointwise function that bends what it reads."""


@dataclass(frozen=True)
class Site:
    """A place where a new activation appears."""

    name: str
    """What produces it: the path of a layer, or the owning module and the operation (`layer1.0.add`)."""
    chain: tuple[fx.Node, ...]
    """The producer and the pointwise functions fused with it, such as its activation function."""
    readers: tuple[fx.Node, ...]
    """Who computes something new from it, reached through nodes that only move, pool or select values."""
    needed: bool
    """Whether it is quantized: not if it only goes into adds or out of the network."""
    branch: bool
    """Whether it goes into an add, and else at most out of the network."""

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
        self.activations = activations(graph.graph)
        self.roles = {node: role(node, self.activations) for node in nodes}
        self._prepared = self._find_prepared(nodes)
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
            branch = not needed and any(self.roles[r] is Role.ADD for r in readers)
            yield Site(unique, chain, readers, needed, branch)

    def _find_prepared(self, nodes: list[fx.Node]) -> set[fx.Node]:
        """Nodes before the first layer: they only prepare the image, which is not quantized."""
        prepared: set[fx.Node] = set()
        for node in nodes:
            read = self.activations.intersection(node.all_input_nodes)
            if self.roles[node] is not Role.WEIGHTED and node.op != "output" and read <= prepared:
                prepared.add(node)
        return prepared

    def _produces(self, node: fx.Node) -> bool:
        bends = self.roles[node] is Role.ACTIVATION and not clips(node)
        return (bends or self.roles[node] in PRODUCERS) and node not in self._prepared

    def _chain(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """`node` and the pointwise functions behind it, each all that reads the one before."""
        chain = [node]
        while link := self._link(chain[-1]):
            chain.extend(link)
        return tuple(chain)

    def _link(self, node: fx.Node) -> list[fx.Node]:
        """The pointwise function that alone reads `node`, after the moves that lead to it; else nothing."""
        link: list[fx.Node] = []
        while len(node.users) == 1:
            node = next(iter(node.users))
            link.append(node)
            if self.roles[node] is Role.ACTIVATION:
                return link
            if not moves(node):
                break
        return []

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
            elif user in self.activations:
                waiting.extend(user.users)


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    return f"{owner(node)}.{operation(node)}".lstrip(".")
