"""Which values are quantized: where activations are produced and who reads them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx

from qdrop.graph.ops import Role, activations, holds_tensor, inputs, multiplied, operation, owner, role, stack

PRODUCERS = (Role.PRODUCT, Role.ADD, Role.ARITHMETIC, Role.NORM, Role.OPAQUE)
"""Roles whose output is a new activation. So is that of a function that bends what it reads."""
KEEP_GRID = (Role.SHAPE, Role.SELECT)
"""Roles whose output is on a grid if their inputs are."""


@dataclass(frozen=True)
class Site:
    """A value that is quantized, or could be."""

    name: str
    """What produces it: the path of a layer, or the owning module and the operation (`layer1.0.add`)."""
    chain: tuple[fx.Node, ...]
    """The producer and the functions fused with it, such as its activation function."""
    readers: tuple[fx.Node, ...]
    """Who computes something new from it, reached through nodes that only move, pool or select values."""

    @property
    def node(self) -> fx.Node:
        """The node whose value is quantized."""
        return self.chain[-1]


class Wiring:
    """Roles, layers and sites of a captured graph.

    Args:
        graph: What :func:`qdrop.graph.capture.capture` returned.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.nodes: list[fx.Node] = list(graph.graph.nodes)
        self.activations = activations(graph.graph)
        self._given = set(inputs(graph.graph))
        self.roles = {node: role(node, self.activations) for node in self.nodes}
        self.products = [n for n in self.nodes if n in self.activations and self.roles[n] is Role.PRODUCT]
        self.layers = [node for node in self.products if self.weight(node) is not None]
        self._prepared = self._find_prepared()
        self._names: Counter[str] = Counter()
        self.sites = list(self._find_sites())

    def weight(self, product: fx.Node) -> fx.Node | None:
        """The constant that a product multiplies an activation with; None if both are activations."""
        constants = [node for node in multiplied(product) if node not in self.activations]
        return constants[0] if constants and constants[0].op == "get_attr" else None

    def published(self) -> list[Site]:
        """Values that a product reads, each quantized once, where it is produced.

        For convolutional networks that is the published placement. Not the image, and not what only goes into adds,
        gates and norms: a residual stream has few values that are far larger than all others.
        """
        return [site for site in self.sites if any(self.roles[reader] is Role.PRODUCT for reader in site.readers)]

    def of_units(self, blocks: Iterable[Iterable[fx.Node]]) -> list[Site]:
        """What blocks and the layers outside them give, unless the network returns it; inside blocks as published.

        That is the published placement for detectors: a pyramid's levels are quantized before they are added and not
        after, and its outputs never are.

        Args:
            blocks: Nodes of each.
        """
        block_of = {node: set(nodes) for nodes in blocks for node in nodes}

        def given(site: Site) -> bool:
            if any(reader.op == "output" for reader in site.readers):
                return False
            inside = block_of.get(site.chain[0])
            if inside is None:
                return site.chain[0] in self.products
            return any(self.roles[reader] is Role.PRODUCT or reader not in inside for reader in site.readers)

        return [site for site in self.sites if given(site)]

    def integer(self) -> list[Site]:
        """Further values to quantize, so that every operand of products, sums and pooling is on a grid."""
        on_grid = {site.node for site in self.published()}
        found: list[Site] = []

        def put_on_grid(node: fx.Node) -> None:
            if node in on_grid or node not in self.activations or not holds_tensor(node):
                return
            if not node.meta["floating"]:
                return  # numbers of words, or masks
            sources = [n for n in node.all_input_nodes if n in self.activations]
            if sources and self.roles[node] in KEEP_GRID:
                for source in sources:
                    put_on_grid(source)
            elif not (self.roles[node] is Role.CLIP and all(n in on_grid for n in sources)):
                on_grid.add(node)
                found.append(self._site_of(node))

        read = (Role.PRODUCT, Role.ADD, Role.ARITHMETIC, Role.MIX)
        for reader in self.nodes:
            if reader in self.activations and self.roles[reader] in read:
                for node in reader.all_input_nodes:
                    put_on_grid(node)
        return found

    def _site_of(self, node: fx.Node) -> Site:
        known = next((site for site in self.sites if site.node is node), None)
        return known or Site(self._unique(node), (node,), tuple(self._readers(node)))

    def _find_sites(self) -> Iterator[Site]:
        fused: set[fx.Node] = set()
        for node in self.nodes:
            if node in fused or not self._produces(node):
                continue
            chain = self._chain(node)
            fused.update(chain)
            yield Site(self._unique(node), chain, tuple(self._readers(chain[-1])))

    def _find_prepared(self) -> set[fx.Node]:
        """Nodes before the first layer: they only prepare the image, which is not quantized."""
        prepared: set[fx.Node] = set()
        for node in self.nodes:
            read = self.activations.intersection(node.all_input_nodes)
            if self.roles[node] is not Role.PRODUCT and node.op != "output" and read <= prepared:
                prepared.add(node)
        return prepared

    def _produces(self, node: fx.Node) -> bool:
        new = self.roles[node] in PRODUCERS or self.roles[node] is Role.FUNCTION
        return new and node in self.activations and node not in self._prepared and _is_real(node)

    def _chain(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """`node` and the functions behind it, each all that reads the one before."""
        chain = [node]
        while link := self._link(chain[-1]):
            chain.extend(link)
        return tuple(chain)

    def _link(self, node: fx.Node) -> list[fx.Node]:
        """The function that alone reads `node`, after the moves that lead to it; else nothing."""
        link: list[fx.Node] = []
        while len(users := self._value_readers(node)) == 1:
            node = users[0]
            link.append(node)
            if self.roles[node] in (Role.FUNCTION, Role.CLIP):
                return link
            if self.roles[node] is not Role.SHAPE:
                break
        return []

    def _value_readers(self, node: fx.Node) -> list[fx.Node]:
        """Who reads a node's values, and not only its size."""
        return [user for user in node.users if user in self.activations or user.op == "output"]

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

    def _unique(self, node: fx.Node) -> str:
        name = self.name(node)
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name] - 1}"

    def name(self, node: fx.Node) -> str:
        """The path of a layer or of a module of torch's own that `node` is; else its owner's and the operation."""
        if node in self._given:
            return node.name
        if node in self.layers:
            weight = self.weight(node)
            assert weight is not None
            return layer_path(weight)
        modules = stack(node)
        if modules and modules[-1][1].startswith("torch.nn.modules.") and modules[-1][0]:
            return modules[-1][0]
        return f"{owner(node)}.{operation(node)}".lstrip(".")


def _is_real(node: fx.Node) -> bool:
    """Whether a node's value is one tensor of real numbers, rather than several, or numbers of words."""
    return bool(node.meta["floating"]) and not node.meta["tuple"]


def layer_path(weight: fx.Node) -> str:
    """Path of the layer that a weight is of: the module that holds it, or for one named otherwise its own path."""
    holder, _, name = str(weight.target).rpartition(".")
    return holder if name == "weight" and holder else str(weight.target)


def on_grid(wiring: Wiring, quantized: Iterable[fx.Node]) -> set[fx.Node]:
    """Activations that lie on a grid if these are quantized."""
    found = set(quantized)
    for node in wiring.nodes:
        read = [n for n in node.all_input_nodes if n in wiring.activations]
        if node in wiring.activations and read and all(n in found for n in read):
            keeps = wiring.roles[node] in (*KEEP_GRID, Role.CLIP)
            if keeps:
                found.add(node)
    return found
