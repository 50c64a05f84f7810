"""Names from a file that torch.fx writes into the source of a network: what else they held would be executed.

They are ASCII: of other letters Python takes the compatibility form, by which U+FF54 (a wide t) is a t.
"""

import keyword
import re
from typing import Any

from torch import fx, nn

_PATH = re.compile(r"[\w+/@ -]+(\.[\w+/@ -]+)*", re.ASCII)
_TAKEN = frozenset(["self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"])
_CALLED = frozenset(["getattr", "int", "float", "bool", "abs", "min", "max", "round", "sum"])
_RESERVED = frozenset([*dir(nn.Module()), *dir(fx.GraphModule), "graph", "meta"])


def identifier(name: Any) -> str:
    """`name`, if it can be the name of a node or of an argument, in ASCII.

    Raises:
        ValueError: If it cannot.
    """
    if not isinstance(name, str) or not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is not a name")
    return name


def node_name(name: Any) -> str:
    """`name`, if it is an identifier that means nothing else in the source that torch.fx writes.

    Raises:
        ValueError: If it is not.
    """
    if identifier(name) in _TAKEN | _CALLED:
        raise ValueError(f"{name!r} is not a name for a node: the code of a network uses it for something else")
    return str(name)


def module_path(name: Any) -> str:
    """`name`, if it is a dotted path of a module or tensor, none of whose parts any module has as an attribute.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(name, str) or not _PATH.fullmatch(name) or _RESERVED.intersection(name.split(".")):
        raise ValueError(f"{name!r} is not the path of a layer")
    return name
