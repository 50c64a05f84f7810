"""From a network to one clean graph of ATen operators, by `torch.export`."""

from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn
from torch.utils import _pytree as pytree

from qdrop.errors import first_line
from qdrop.graph.capture.exported import exported
from qdrop.graph.capture.products import plain_attention
from qdrop.graph.inputs import Arguments, Example, arguments, rows
from qdrop.graph.ops import GraphError, inputs
from qdrop.graph.passes import simplify
from qdrop.graph.passes.enlarging import is_enlarging, size_from_the_other
from qdrop.graph.shapes import record_shapes
from qdrop.quantization.state import evaluating

TOLERANCE = 1e-3
"""Largest difference of the captured graph's output from the model's, relative to its largest value."""


def capture(model: nn.Module, example: Example) -> fx.GraphModule:
    """Capture `model` in evaluation mode as a graph that is safe to cut up and quantize.

    The model is left as it was, its parameters are shared; folded ones are new.

    Args:
        model: Any module that `torch.export` can follow.
        example: Some inputs, `[N, ...]` each, N of any size: a tensor, or what a data loader gives, of which
            :func:`qdrop.graph.inputs.arguments` takes what `forward` does. The graph is checked against the model on
            them, with two rows and with three.

    Returns:
        The graph. It takes what the model takes and gives what it gives, in a batch of any size, and has the form that
        :func:`qdrop.graph.passes.simplify` describes. In each node's `meta` are the `shapes` of its value, whether it
        has a row for each image (`rows`), and the modules it is in (`nn_module_stack`).

    Raises:
        GraphError: If the model cannot be captured, or the graph computes something else.
    """
    _check_weights(model)
    given = arguments(model, example)
    two, three = rows(given, [0, 1]), rows(given, [0, 1, 0])
    with evaluating(model), torch.no_grad(), plain_attention():
        of_two = model(**two)  # what it cannot run on is told in its own words
        graph = _exported(model, two)
        expected = of_two, _of_three(model, three)
    graph.meta["example"] = two
    result_of_three = record_shapes(graph, three)
    by_three = {node: node.meta["shapes"] for node in graph.graph.nodes}
    results = record_shapes(graph, two), result_of_three
    for node, shapes in by_three.items():
        node.meta["rows"] = [s[:1] for s in shapes] == [(3,)] and [s[:1] for s in node.meta["shapes"]] == [(2,)]
    for ours, theirs in zip(results, expected, strict=True):
        _check_same(ours, theirs)
    return graph


def _check_weights(model: nn.Module) -> None:
    """Refuse weights that are no floating-point numbers: a layer that holds them would be taken for one without any."""
    for name, value in model.state_dict(keep_vars=True).items():
        packed = not isinstance(value, Tensor) and not name.endswith("_extra_state")
        integers = isinstance(value, nn.Parameter) and value.ndim > 1 and not value.is_floating_point()
        if packed or integers or (isinstance(value, Tensor) and value.is_quantized):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise GraphError(
                f"'{name}' is {kind}: the model is quantized already, by torch.ao.quantization or another library;"
                " quantize the one it was made from, with weights in torch.float32"
            )


def _of_three(model: nn.Module, given: Arguments) -> Any:
    """What the model gives for three rows, where it gave something for two."""
    try:
        return model(**given)
    except Exception as error:  # a foreign network may raise anything
        raise GraphError(
            f"the network works in batches of 2 alone: {first_line(error)}; write sizes as x.shape[0], or -1 in a"
            " reshape"
        ) from error


def _exported(model: nn.Module, given: Arguments) -> fx.GraphModule:
    """The graph for images of any size where that can be; `meta["any_size"]` says whether it is."""
    graph = _simplified(model, given, (0,))
    graph.meta["any_size"] = _takes_other_sizes(graph, model, given)
    if not graph.meta["any_size"] and any(map(is_enlarging, graph.graph.nodes)):
        # One value enlarged to the size of another: that size is a number in the graph.
        size_from_the_other(graph)
        graph.meta["any_size"] = _takes_other_sizes(graph, model, given)
        if graph.meta["any_size"]:
            return graph
        try:  # sizes computed in some other way; to follow them takes a minute for a large network
            free = _simplified(model, given, (0, 2, 3))
        except GraphError:
            return graph
        free.meta["any_size"] = _takes_other_sizes(free, model, given)
        return free if free.meta["any_size"] else graph
    return graph


def _simplified(model: nn.Module, given: Arguments, axes: tuple[int, ...]) -> fx.GraphModule:
    """The graph, in which these axes of the inputs may have any length."""
    graph = exported(model, given, axes)
    for node in inputs(graph.graph):
        value = node.meta["val"]
        if isinstance(value, Tensor) and value.ndim and not isinstance(value.shape[0], SymInt):
            raise GraphError(
                f"the network works in batches of {value.shape[0]} alone: its forward fixes the number of rows of"
                f" '{node.name}'; write sizes as x.shape[0], or -1 in a reshape"
            )
    simplify(graph)
    return graph


def _takes_other_sizes(graph: fx.GraphModule, model: nn.Module, given: Arguments) -> bool:
    """Whether the graph gives what the model does for images half as large again."""

    def larger(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()):
            return value
        height, width = value.shape[2:]
        return value.repeat(1, 1, 2, 2)[:, :, : height * 3 // 2, : width * 3 // 2]

    images = {name: pytree.tree_map(larger, value) for name, value in given.items()}
    if all(a is b for a, b in zip(pytree.tree_leaves(images), pytree.tree_leaves(given), strict=True)):
        return False
    try:
        _check_same(graph(**images), model(**images))
    except Exception:  # whatever an operator says of shapes that do not fit
        return False
    return True


def _check_same(ours: Any, theirs: Any) -> None:
    """Refuse a graph that computes something else than the model on the example."""
    pairs = list(zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True))
    if not any(isinstance(value, Tensor) for value, _ in pairs):
        raise GraphError("the model returns no tensor")
    for found, expected in pairs:
        if isinstance(expected, Tensor) and expected.numel():
            difference = float((expected.double() - found.double()).abs().max())
            if not difference <= TOLERANCE * float(expected.double().abs().max()) + 1e-6:
                raise GraphError(
                    f"the captured graph differs from the model by {difference:.3g}: its forward depends on more than"
                    " its input, such as random numbers or what earlier calls left, or the weights are not finite"
                )
