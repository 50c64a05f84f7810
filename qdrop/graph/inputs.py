"""What a network takes: of a batch, as a data loader gives it, the members that are inputs."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdrop.graph.ops import GraphError

Example = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor `[N, ...]`, or a nest of them, of N rows each."""
Arguments = dict[str, Any]
"""Arguments of `forward` by name: tensors `[N, ...]`, or nests of them."""


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
        given = {names[0]: batch}
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


def rows(given: Arguments, indices: Sequence[int]) -> Arguments:
    """Chosen rows of every tensor, those beyond the last counted from the start again."""

    def chosen(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or not len(value):
            return value
        return value[torch.tensor([i % len(value) for i in indices], device=value.device)]

    found: Arguments = pytree.tree_map(chosen, given)
    return found


def joined(batches: Sequence[Arguments]) -> Arguments:
    """The rows of several batches, one after the other."""

    def together(*values: Any) -> Any:
        return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]

    found: Arguments = pytree.tree_map(together, *batches)
    return found
