"""What a network takes: of a batch, as a data loader gives it, the members that are inputs."""

import inspect
import operator
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qdrop.graph.ops import GraphError, inputs

Example = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor `[N, ...]`, or a nest of them, of N rows each."""
Arguments = dict[str, Any]
"""Arguments of `forward` by name: tensors `[N, ...]`, or nests of them."""
Calibration = Arguments | list[Arguments]
"""Arguments for all calibration images; where these differ in size, batch by batch."""


def arguments(model: nn.Module, batch: Example) -> Arguments:
    """The arguments of a model's `forward` that a batch holds.

    A tensor is the first of them. Of a sequence, such as `(images, labels)`, as many are taken as `forward` has
    parameters without a default, and at least one. Of a mapping, those that parameters are named as; if there are none
    and `forward` takes one argument, that is the mapping.

    Args:
        model: The network.
        batch: What a data loader gives.

    Raises:
        GraphError: If the batch does not hold what `forward` needs.
    """
    parameters = _parameters(model)
    names = list(parameters)
    needed = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if isinstance(batch, Tensor):
        given: Arguments = {names[0]: batch}
    elif isinstance(batch, Mapping):
        given = {name: batch[name] for name in names if name in batch}
        if not given and len(needed) <= 1:
            given = {names[0]: dict(batch)}
    else:
        given = dict(zip(names, list(batch)[: max(1, len(needed))], strict=False))
    if missing := [name for name in needed if name not in given]:
        raise GraphError(
            f"forward of {type(model).__name__} takes {', '.join(needed)}; the batch holds nothing for"
            f" {', '.join(missing)}: give a tuple in that order, or a dict with these names"
        )
    return given


def all_arguments(model: nn.Module, images: Tensor | list[Tensor]) -> Calibration:
    """The arguments for all calibration images `[N, ...]`; where these are batches of several sizes, of each batch."""
    return [arguments(model, batch) for batch in images] if isinstance(images, list) else arguments(model, images)


def _parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Parameters of a model's `forward` that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {k: p for k, p in inspect.signature(model.forward).parameters.items() if p.kind in kinds}
    if not found:
        raise GraphError(f"forward of {type(model).__name__} has no named parameter; expected one for each input")
    return found


def tensors(given: Any) -> list[Tensor]:
    """All tensors of a nest, in order."""
    return [value for value in pytree.tree_leaves(given) if isinstance(value, Tensor)]


def rows(given: Calibration, indices: Sequence[int]) -> Arguments:
    """Chosen rows of every tensor, of the first batch; those beyond the last are counted from the start again."""

    def chosen(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or not len(value):
            return value
        return value[torch.tensor([i % len(value) for i in indices], device=value.device)]

    found: Arguments = pytree.tree_map(chosen, given[0] if isinstance(given, list) else given)
    return found


def joined(batches: Sequence[Arguments]) -> Arguments:
    """The rows of several batches, one after the other."""

    def together(*values: Any) -> Any:
        return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]

    found: Arguments = pytree.tree_map(together, *batches)
    return found


def count_rows(given: Calibration) -> int:
    """Number of images."""
    batches = given if isinstance(given, list) else [given]
    return sum(len(tensors(batch)[0]) for batch in batches)


def split(given: Calibration, size: int) -> list[Arguments]:
    """Batches of `size` rows, the last of what is left; those that there are stay as they are."""
    if isinstance(given, list):
        return given
    count = len(tensors(given)[0])
    return [between(given, start, start + size) for start in range(0, count, size)]


def first(given: Calibration, count: int) -> Calibration:
    """The first `count` rows; of batches as many as hold them."""
    if not isinstance(given, list):
        return between(given, 0, count)
    before = accumulate((count_rows(batch) for batch in given), initial=0)
    return [batch for batch, seen in zip(given, before, strict=False) if seen < count]


def between(given: Arguments, start: int, stop: int) -> Arguments:
    """The rows from `start` to `stop`, views of what is given."""
    found: Arguments = pytree.tree_map(lambda v: v[start:stop] if isinstance(v, Tensor) and v.ndim else v, given)
    return found


def to_device(given: Arguments, device: torch.device) -> Arguments:
    """The same on a device."""
    found: Arguments = pytree.tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, given)
    return found


def by_node(graph: fx.Graph, given: Calibration) -> dict[str, Any]:
    """The tensors that a graph's inputs are given, by the names of their nodes; lists of them where there are batches.

    Args:
        graph: A captured graph.
        given: Its arguments.
    """
    if isinstance(given, list):
        batches = [by_node(graph, batch) for batch in given]
        return {name: [batch[name] for batch in batches] for name in batches[0]}
    found: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = given[str(node.target)]
        elif node.target is operator.getitem and node.args[0] in found:
            found[node] = found[node.args[0]][node.args[1]]
    return {node.name: found[node] for node in inputs(graph) if isinstance(found[node], Tensor)}


def describe(given: Any) -> Any:
    """Arguments as plain data: `{"shape": [...], "dtype": "float32"}` for a tensor; nests as they are."""
    match given:
        case Tensor():
            return {"shape": list(given.shape), "dtype": str(given.dtype).removeprefix("torch.")}
        case Mapping():
            return {"dict": [[key, describe(value)] for key, value in given.items()]}
        case tuple() | list():
            return [describe(value) for value in given]
        case None | bool() | int() | float() | str():
            return given
    raise GraphError(f"an input is a {type(given).__name__}; expected tensors, and tuples and dicts of them")


def zeros(data: Any) -> Any:
    """Arguments of the form that :func:`describe` told, without memory of their own.

    Raises:
        ValueError: If the data is none that it writes.
    """
    match data:
        case {"shape": list(shape), "dtype": str(dtype), **rest} if not rest:
            if not isinstance(kind := getattr(torch, dtype, None), torch.dtype):
                raise ValueError(f"{dtype!r} is no type of numbers")
            return torch.zeros(1, dtype=kind).expand([int(size) for size in shape])
        case {"dict": list(pairs), **rest} if not rest:
            return {key: zeros(value) for key, value in pairs}
        case list():
            return tuple(zeros(value) for value in data)
        case None | bool() | int() | float() | str():
            return data
    raise ValueError(f"the input {data!r} is none that a file may hold")
