"""What parameters alone decide is computed once, such as a weight that is standardised in every forward."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from qdrop.graph.ops import GraphError, Role, constant, operation, owner, place, row, where


@torch.no_grad()
def fold_constants(graph: fx.GraphModule) -> None:
    """Replace what depends on no input by its value.

    Raises:
        GraphError: If the network draws random numbers.
    """
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = constant(node)
        elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise GraphError(f"{where(node)} draws random numbers; a network that is quantized must not")
            values[node] = _computed(node, values)
    taken = {str(n.target) for n in graph.graph.find_nodes(op="get_attr") if not values.keys() >= n.users.keys()}
    for node, value in values.items():
        read = [user for user in node.users if user not in values]
        if node.op == "get_attr" or not read:
            continue
        if isinstance(value, Tensor):
            with graph.graph.inserting_before(node):
                path = _name(graph, node, read[0], taken)
                folded = add_constant(graph, path, value)
            taken.add(path)
            folded.meta = dict(node.meta)
            node.replace_all_uses_with(folded, delete_user_cb=lambda user: user not in values)
        elif isinstance(value, (int, float, bool)):
            for user in read:
                user.args = fx.map_arg(user.args, lambda n: value if n is node else n)  # noqa: B023
                user.kwargs = fx.map_arg(user.kwargs, lambda n: value if n is node else n)  # noqa: B023
    graph.graph.eliminate_dead_code()


def _computed(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _name(graph: fx.GraphModule, node: fx.Node, reader: fx.Node, taken: set[str]) -> str:
    """Where a constant is kept: as the weight of the module that reads it, if that has no other."""
    named = "weight" if row(reader).role is Role.PRODUCT else f"{operation(node)}_constant"
    path = f"{owner(reader)}.{named}".lstrip(".")
    return f"{path}_{node.name}" if path in taken or _is_module(graph, path) else path


def _is_module(graph: fx.GraphModule, path: str) -> bool:
    try:
        graph.get_submodule(path)
    except AttributeError:
        return False
    return True


def add_constant(graph: fx.GraphModule, path: str, value: Tensor) -> fx.Node:
    """Keep a tensor at a dotted path of the graph's module, in the place of what is there; the node that reads it."""
    holder: nn.Module = graph
    for part in path.split(".")[:-1]:
        if not isinstance(getattr(holder, part, None), nn.Module):
            holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    set_constant(graph, path, value)
    node = graph.graph.get_attr(path)
    node.name = node.name  # as fx has made it from the path
    return node


def set_constant(graph: fx.GraphModule, path: str, value: Tensor) -> None:
    """Put a tensor at a dotted path whose holder exists; a floating one as a parameter that needs no gradient."""
    holder, name = place(graph, path)
    if name in holder.__dict__ or name in holder._parameters or name in holder._buffers:
        delattr(holder, name)
    value = value.detach()
    if value.is_floating_point():
        holder.register_parameter(name, nn.Parameter(value, requires_grad=False))
    else:
        holder.register_buffer(name, value)
