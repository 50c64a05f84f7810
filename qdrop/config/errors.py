"""What is wrong with settings, in words."""

import functools
import itertools
import json
import operator
from typing import Any

from qdrop.config.help import expected, nearest
from qdrop.config.yaml_text import Key
from qdrop.errors import QdropError

LONGEST = 200
"""Characters of a value that an error shows."""

Places = dict[Key, str]
"""Where a key was given: "file:line" or "command line"."""


class ConfigError(QdropError, ValueError):
    """Settings that cannot be used; each of `problems` names key and place, and what was expected."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def at(key: Key, places: Places) -> str:
    """Where a key, or the nearest section above it, was given: ``c.yaml:3: ``; nothing where that is not known."""
    known = (places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places)
    return next((f"{place}: " for place in known), "")


def in_words(detail: Any, data: dict[str, Any], places: Places) -> str:
    """One error of pydantic in our words."""
    key = tuple(itertools.takewhile(lambda part: isinstance(part, str), detail["loc"]))  # not into lists
    place, name = at(key, places), ".".join(key)
    if detail["type"] == "unexpected_keyword_argument":
        return f"{place}{shown(name)}: unknown key; {nearest(key)}"
    if detail["type"] == "value_error":
        return f"{place}{shown(name)}: {detail['ctx']['error']}"
    value = functools.reduce(operator.getitem, key, data)
    return f"{place}{shown(name)} = {shown(value)}: expected {expected(key)}"


def shown(value: Any) -> str:
    """A value as YAML would have it, its start if it is long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
