"""`capture` of `qdrop.graph.capture`, once for each network in a process: it takes a second, and most tests are of what
follows. The tests of the capture itself call it directly.
"""

import copy
import hashlib
from functools import wraps

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qdrop.graph.capture import capture
from qdrop.graph.inputs import arguments, rows

SMALL = 1_000_000
"""Values of a network that is kept."""
_graphs: dict[tuple, fx.GraphModule] = {}


@wraps(capture)
def captured_once(model, example):
    if not isinstance(model, nn.Module):
        return capture(model, example)
    key = _key(model, rows(arguments(model, example), [0, 1]))  # what it looks at
    if key is None:
        return capture(model, example)
    if key not in _graphs:
        _graphs[key] = capture(model, example)
    graph = copy.deepcopy(_graphs[key])  # what a test does to it is its own
    for name, value in dict(graph.meta).items():
        graph.meta[name] = copy.deepcopy(value)
    return graph


def _key(model: nn.Module, example) -> tuple | None:
    """What the graph depends on: code, settings, values, shapes; None of a network that is large or has hooks."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    leaves, nest = pytree.tree_flatten(example)
    given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if sum(value.numel() for value in tensors.values()) > SMALL or not all(map(_plain, [*tensors.values(), *given])):
        return None
    modules = []
    for name, module in model.named_modules(remove_duplicate=False):
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        modules.append((name, type(module), repr(own), repr(sorted(module._non_persistent_buffers_set))))
    digest = hashlib.sha256()
    parts, seen = [], list(map(id, tensors.values()))
    for name, value in tensors.items():
        parts.append((name, value.shape, value.stride(), value.dtype, seen.index(id(value))))  # tied ones are one
        digest.update(value.detach().numpy().tobytes())
    inputs = [_input(leaf, digest) for leaf in leaves]
    return tuple(modules), tuple(parts), tuple(inputs), str(nest), digest.hexdigest()


def _plain(value) -> bool:
    """Whether NumPy can read a tensor."""
    if type(value) not in (Tensor, nn.Parameter) or value.device.type != "cpu" or value.is_nested:
        return False
    return (
        not value.is_sparse and not value.is_quantized and value.dtype.itemsize > 2
    )  # not bfloat16, which NumPy does not have


def _input(leaf, digest):
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    digest.update(leaf.detach().numpy().tobytes())
    return leaf.shape, leaf.dtype
