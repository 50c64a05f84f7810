"""YAML as plain data: mappings, lists, texts, numbers, true, false, null, and the line of each key.

Types follow from how a value is written. Tags and aliases are refused: with tags a text asks for other types, and with
aliases a few lines can stand for gigabytes.
"""

import re
from typing import Any

import yaml  # type: ignore[import-untyped]

from qdrop.errors import QdropError, first_line

Key = tuple[str, ...]

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|[-+]?\d[\d_]*[eE][-+]?\d+$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
"""YAML 1.1 asks for the point in 4.0e-5, which nobody expects."""


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """What a value is by its first letter: as in YAML 1.1, without dates and merge keys, and 4e-5 is a number."""
    kept = {f"{_TAG}{name}" for name in ("null", "bool", "int")}
    found = {
        first: [(tag, regexp) for tag, regexp in pairs if tag in kept]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "+-.0123456789":
        found.setdefault(first, []).append((f"{_TAG}float", _FLOAT))
    return found


class YamlError(QdropError, ValueError):
    """A text that is no YAML, or more than plain data; `line` is where, from 1, if that is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        self.line = line
        super().__init__(problem)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(f"the alias *{event.anchor} is not supported: write out what it stands for", _line(event))
        if event.tag is not None:
            tag = event.tag.replace(_TAG, "!!")
            raise YamlError(f"the tag {tag} is not supported: write the value alone", _line(event))
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()  # it quotes what would be read as something else


def parse(text: str) -> tuple[Any, dict[Key, int]]:
    """The data that a text stands for, None for an empty one, and the line of each key in it, from 1.

    Raises:
        YamlError: If it is no YAML, or holds tags, aliases, a key twice, or a number that is too long.
    """
    lines: dict[Key, int] = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        return (None if node is None else _data(node, (), lines)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(error.problem or first_line(error), mark and mark.line + 1) from None
    except YamlError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two of an escape beyond Unicode
        raise YamlError(first_line(error)) from None
    except RecursionError:
        raise YamlError("it is nested too deeply") from None


def dump(data: Any) -> str:
    """Plain data as YAML; :func:`parse` reads it back."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _data(node: yaml.Node, key: Key, lines: dict[Key, int]) -> Any:
    if isinstance(node, yaml.ScalarNode):
        _check_text(node)
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_data(item, key, lines) for item in node.value]
    data: dict[str, Any] = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise YamlError("a key is a list or a mapping; expected a text", _line(name))
        _check_text(name)
        if name.value in data:
            raise YamlError(f"duplicate key {name.value}", _line(name))
        inner = (*key, name.value)
        lines[inner] = _line(name)
        data[name.value] = _data(value, inner, lines)
    return data


def _scalar(node: yaml.ScalarNode) -> Any:
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except ValueError:
        raise YamlError(f"{node.value[:20]}... is no number that can be used", _line(node)) from None


def _check_text(node: yaml.ScalarNode) -> None:
    """Refuse half a surrogate pair, which an escape can write and no file can hold."""
    try:
        node.value.encode()
    except UnicodeEncodeError as error:
        raise YamlError(f"no text in UTF-8: {error}", _line(node)) from None


def _line(place: yaml.Node | yaml.Event) -> int:
    line: int = place.start_mark.line
    return line + 1
