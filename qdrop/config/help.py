"""What the settings are, read off the dataclasses, for ``--help`` and for what errors say was expected."""

import difflib
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from qdrop.config.methods import METHODS
from qdrop.config.quant import PRESETS
from qdrop.config.schema import Config
from qdrop.config.yaml_text import Key
from qdrop.registry import Registry

PATTERN = "<pattern>"  # in a listed key: whatever name a mapping is given
NAMES = {NoneType: "null", bool: "true | false", str: "text", dict: "mapping"}


class Setting(NamedTuple):
    """One setting, or one section of them."""

    key: Key
    hint: Any
    default: Any
    meaning: str


def settings(section: Any = Config, above: Key = ()) -> Iterator[Setting]:
    """Every setting of a dataclass, each section before its members."""
    hints = get_type_hints(section, include_extras=True)
    for name, info in section.__pydantic_fields__.items():
        key = (*above, name)
        default = info.get_default(call_default_factory=True, validated_data={})
        yield Setting(key, hints[name], default, _meaning(section, name))
        for further, inner in _sections(hints[name]):
            yield from settings(inner, key + further)


BESIDE_SETTINGS: tuple[Key, ...] = (("base",), ("quant", "recon", "preset"), ("quant", "method"))
"""What a file may hold that is no setting: each stands for others."""


def presets_help() -> str:
    """What stands for other settings, as text: a base, each preset of reconstruction and each method."""
    lines = [
        "base: ../base.yaml in a file stands for all that this other file sets; what is in the file takes precedence."
    ]
    lines += ["quant.recon.preset stands for several of these; those given beside it take precedence:"]
    for name, settings in PRESETS.items():
        lines.append(f"  {name}: {', '.join(f'{key}={value:g}' for key, value in settings.items())}")
    lines += ["quant.method stands for several settings of quant; those given beside it take precedence:"]
    lines += [f"  {name}: {method.title} ({method.source})" for name, method in METHODS.items()]
    return "\n".join(lines)


def settings_help(width: int) -> str:
    """A paragraph for each setting, wrapped to so many columns."""
    return "\n".join(_paragraph(setting, width) for setting in settings())


def describe(hint: Any) -> str:
    """A type in the words of help and errors: ``int 2..8 | null``."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        words = [str(extra) for extra in parts[1:] if isinstance(extra, str | Registry)]
        limits = [limit for extra in parts[1:] for limit in getattr(extra, "metadata", ())]
        return words[0] if words else describe(parts[0]) + _bounds(limits)
    if origin in (Union, UnionType):
        return " | ".join(describe(part) for part in parts)
    if origin is Literal:
        return " | ".join(str(part) for part in parts)
    if origin is tuple:
        return f"list of {len(parts)}, each {' | '.join(dict.fromkeys(describe(part) for part in parts))}"
    if is_dataclass(hint):
        return "section"
    return NAMES.get(origin or hint) or hint.__name__


def expected(key: Key) -> str:
    """The type of the setting with this key, in words."""
    hint: Any = Config
    for name in key:
        hint = _member(hint, name)
    return describe(hint)


def nearest(key: Key) -> str:
    """What to say of an unknown key: the valid one that was probably meant, else all that are valid there."""
    *section, name = key
    known = [*(setting.key for setting in settings()), *BESIDE_SETTINGS]
    nested = (*section, *name.split("."))
    starts = (other[: len(nested)] for other in known)
    if len(nested) > len(key) and any(len(start) == len(nested) and _is_at(start, nested) for start in starts):
        return f"in a file, write {': {'.join(nested)}: ...{'}' * (len(nested) - 1)}"
    beside = [other[-1] for other in known if len(other) == len(key) and _is_at(other[:-1], section)]
    same_name = [other for other in known if other[-1] == name and PATTERN not in other]
    if close := difflib.get_close_matches(name, beside, n=1):
        return f"did you mean {'.'.join((*section, close[0]))}?"
    if same_name:
        return f"did you mean {' or '.join('.'.join(other) for other in same_name)}?"
    return f"valid here: {', '.join(beside)}"


def _is_at(listed: Key, section: Sequence[str]) -> bool:
    """Whether a listed key stands for this one."""
    return all(one in (PATTERN, other) for one, other in zip(listed, section, strict=True))


def _meaning(section: Any, name: str) -> str:
    """The docstring of a field, which it may have from a parent class."""
    fields = (getattr(parent, "__pydantic_fields__", {}).get(name) for parent in section.__mro__)
    text = next((info.description for info in fields if info and info.description), "")
    return " ".join(text.split())


def _sections(hint: Any) -> Iterator[tuple[Key, Any]]:
    """The dataclasses a setting may hold, each with the key that leads on to it."""
    if is_dataclass(hint):
        yield (), hint
    elif get_origin(hint) is dict:
        yield from (((PATTERN, *key), inner) for key, inner in _sections(get_args(hint)[1]))
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _sections(part)


def _member(hint: Any, name: str) -> Any:
    """The type of a section's or mapping's member."""
    for further, section in _sections(hint):
        if further:
            return section
        return get_type_hints(section, include_extras=True)[name]
    return Any


def _bounds(limits: list[Any]) -> str:
    """The range of a number: `` 2..8``, `` >= 0, < 1``."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = {sign: _number(getattr(limit, sign)) for limit in limits for sign in signs if hasattr(limit, sign)}
    if found.keys() == {"ge", "le"}:
        return f" {found['ge']}..{found['le']}"
    return "".join(f", {signs[sign]} {value}" for sign, value in found.items()).replace(",", "", 1)


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _paragraph(setting: Setting, width: int) -> str:
    """One setting: key, default and type on a line, its meaning below; a section has an empty line above."""
    name, words = ".".join(setting.key), describe(setting.hint)
    if any(not further for further, _ in _sections(setting.hint)):  # one itself, not a mapping of some
        is_off = " = null" if setting.default is None else ""
        return f"\n{name}{is_off}  ({words})\n{_fill(setting.meaning, width, 6)}"
    head = f"{name} = {json.dumps(setting.default)}  ({words})"
    return f"{_fill(head, width, 2)}\n{_fill(setting.meaning, width, 6)}"


def _fill(text: str, width: int, indent: int) -> str:
    """Wrapped text, its further lines indented by six."""
    return textwrap.fill(text, width, initial_indent=" " * indent, subsequent_indent=" " * 6, break_on_hyphens=False)
