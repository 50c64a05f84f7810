"""Where a network ends: its outputs, and the values that its last layers read."""

from torch import fx

from qdrop.graph.ops import Role, activations, multiplied, role


def outputs(network: fx.GraphModule) -> list[fx.Node]:
    """The activations a network gives, in order, each once: its outputs without those that are constants or sizes."""
    real = activations(network.graph)
    (output,) = network.graph.find_nodes(op="output")
    return [node for node in dict.fromkeys(output.all_input_nodes) if node in real and node.meta["floating"]]


def last_read(network: fx.GraphModule) -> list[fx.Node]:
    """What the last product on the way to each output reads: the features that a classifier's last layer takes."""
    real = activations(network.graph)
    found: dict[fx.Node, None] = {}
    seen, waiting = set[fx.Node](), outputs(network)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if role(node, real) is Role.PRODUCT:
            found.update(dict.fromkeys(operand for operand in multiplied(node) if operand in real))
        else:
            waiting.extend(n for n in node.all_input_nodes if n in real)
    return [node for node in found if node.meta["floating"]]


def giving(network: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """A network that gives these of its values as a tuple; parameters and quantizers are those of `network`."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(network.graph, copies)
    graph.output(tuple(copies[node] for node in nodes))
    return fx.GraphModule(network, graph)


def biases(network: fx.GraphModule) -> list[str]:
    """Paths of the constants that are added to a product's result as part of it, each once."""
    real = activations(network.graph)
    found: dict[str, None] = {}
    for node in network.graph.nodes:
        if node in real and role(node, real) is Role.PRODUCT:
            operands = multiplied(node)
            added = [n for n in node.all_input_nodes if n.op == "get_attr" and n not in operands]
            found.update(dict.fromkeys(str(n.target) for n in added))
    return list(found)
