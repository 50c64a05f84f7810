"""Settings from YAML files and the command line, with errors that name key, file and line.

    config = load_config("config.yaml", ["quant.recon.iters=100"])

A YAML file may name another to build on, ``base: ../base.yaml``, relative to its own folder. Values are plain
data: nothing is evaluated or interpolated.
"""

import functools
import io
import itertools
import json
import operator
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from qdrop.config import PRESETS, Config
from qdrop.config_help import Key, expected, nearest
from qdrop.errors import QdropError, first_line
from qdrop.files import write_file

# a.b.c=value; a name with dots in it goes in brackets: quant.overrides[layer1.*].w_bit=4
OVERRIDE = re.compile(r"[^\s.=\[\]]+(\.[^\s.=\[\]]+|\[[^\s=\[\]]+\])*=.*", re.DOTALL)
NO_INTERPOLATION = "${...} is not supported, values are taken as they are written"

HOW = (
    *("process.device", "process.threads", "process.out"),
    *("data.num_workers", "data.pin_memory"),
    *("quant.recon.keep_gpu", "quant.recon.cache.device", "quant.recon.compile"),
)
"""Settings of where and how fast to work, not of what comes out: free to change in a run that is there."""

Places = dict[Key, str]  # where a key was given: "file:line" or "command line"

_ADAPTER = TypeAdapter(Config)


class ConfigError(QdropError, ValueError):
    """Settings that cannot be used; each of `problems` names key and place, and what was expected."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, and the ones it builds on; overrides such as ``quant.recon.iters=100`` come last."""
    return _overridden(*_read(Path(path)), overrides)


def config_from_dict(data: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Checks plain data, as from `config_to_dict`; overrides come last."""
    return _overridden(_with_preset(data, {}), {}, overrides)


def _overridden(data: dict[str, Any], places: Places, overrides: Sequence[str]) -> Config:
    given: dict[str, Any] = {}
    for extra in _parse_overrides(overrides):
        given = _merge(given, extra)
        places = places | dict.fromkeys(_keys(extra), "command line")
    return _validate(_merge(data, _with_preset(given, places)), places)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain data: dicts, lists, numbers, texts."""
    return _ADAPTER.dump_python(config, mode="json")


def flat(data: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested data with its key: `quant.recon.iters`; of an empty mapping the mapping."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def what_counts(config: Config) -> dict[str, Any]:
    """The settings that what comes out of a run depends on, by dotted name: all but those of `HOW`.

    Of several overrides the order counts too: the last that matches decides.
    """
    settings = {key: value for key, value in flat(config_to_dict(config)) if key not in HOW}
    patterns = list(config.quant.overrides)
    return settings | {"quant.overrides": patterns} if len(patterns) > 1 else settings


def save_config(config: Config, path: str | Path) -> None:
    """Writes every setting as YAML; `load_config` reads it back."""
    write_file(Path(path), OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config))))


def _read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Places]:
    """The data of a file merged over that of its base; `above`: the files that led here."""
    data, places = _parse_file(path)
    data = _with_preset(data, places)
    if "base" not in data:
        return data, places
    base, place = data.pop("base"), places.pop(("base",))
    if not isinstance(base, str):
        raise ConfigError(f"{place}: base = {_show(base)}: expected the path of a YAML file")
    file = Path(os.path.normpath(path.parent / base))
    if file.resolve() in [p.resolve() for p in (*above, path)]:
        raise ConfigError(f"{place}: base = {base}: the files build on each other in a circle")
    if not file.is_file():
        raise ConfigError(f"{place}: base = {base}: no such file: {file}")
    lower, lower_places = _read(file, (*above, path))
    return _merge(lower, data), lower_places | places


def _parse_file(path: Path) -> tuple[dict[str, Any], Places]:
    """The plain data of one YAML file, and the line of each key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        nodes = list(_nodes(yaml.compose(text, Loader=yaml.SafeLoader)))
        refused = [
            f"{path}:{line}: {'.'.join(key)} = {node.value}: {NO_INTERPOLATION}"
            for key, line, node in nodes
            if isinstance(node, yaml.ScalarNode) and "${" in node.value
        ]
        if refused:
            raise ConfigError(*refused)
        data = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{path}{_line(error)}: not valid YAML: {_reason(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: expected sections (quant, model, data, process), got a list")
    places = {key: f"{path}:{line}" for key, line, _ in nodes}
    return {str(key): value for key, value in data.items()}, places


def _nodes(node: yaml.Node | None, key: Key = (), line: int = 1) -> Iterator[tuple[Key, int, yaml.Node]]:
    """Every value in a YAML document with its key and the key's line; items of a list have the list's key."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner, at = (*key, str(name.value)), name.start_mark.line + 1
            yield inner, at, value
            yield from _nodes(value, inner, at)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield key, line, item
            yield from _nodes(item, key, line)


def _line(error: Exception) -> str:
    """``:3`` where a YAML error knows its line."""
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _reason(error: Exception) -> str:
    """What is wrong, without the position and context that the libraries add."""
    return getattr(error, "problem", None) or first_line(error)


def _parse_overrides(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """``a.b=value`` as nested data; the value is read as YAML, and nothing at all is null."""
    parsed: list[dict[str, Any]] = []
    problems = []
    for override in overrides:
        try:
            if not OVERRIDE.fullmatch(override):
                raise ConfigError("expected key=value, as in quant.recon.iters=100")
            if "${" in override:
                raise ConfigError(NO_INTERPOLATION)
            parsed.append(OmegaConf.to_container(OmegaConf.from_dotlist([override])))  # type: ignore[arg-type]
        except (ConfigError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
            problems.append(f"command line: {override}: {_reason(error)}")
    if problems:
        raise ConfigError(*problems)
    return parsed


def _merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """`upper` over `lower`, mapping by mapping; anything else is replaced whole."""
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(lower.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(lower[key], value) if both else value
    return merged


def _keys(data: dict[str, Any], above: Key = ()) -> Iterator[Key]:
    """Every key of nested data."""
    for name, value in data.items():
        yield (*above, str(name))
        if isinstance(value, dict):
            yield from _keys(value, (*above, str(name)))


def _validate(data: dict[str, Any], places: Places) -> Config:
    """The settings, checked as JSON, in which mappings are sections and lists are tuples."""
    text = json.dumps(data, default=_plain)
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        problems = (_problem(detail, json.loads(text), places) for detail in error.errors())
        raise ConfigError(*dict.fromkeys(problems)) from None


def _plain(value: object) -> object:
    """A value that JSON does not know: of NumPy or a tensor the number it holds, else its text."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else str(value)


def _with_preset(data: dict[str, Any], places: Places) -> dict[str, Any]:
    """The data of one file, or of the command line, with a preset replaced by the settings it stands for.

    Those beside it take precedence, and it over those of the files below.
    """
    quant = data.get("quant")
    recon = quant.get("recon") if isinstance(quant, dict) else None
    if not isinstance(quant, dict) or not isinstance(recon, dict) or "preset" not in recon:
        return data
    name, others = recon["preset"], {key: value for key, value in recon.items() if key != "preset"}
    if not isinstance(name, str) or name not in PRESETS:
        place = places.get(("quant", "recon", "preset"))
        raise ConfigError(
            f"{f'{place}: ' if place else ''}quant.recon.preset = {_show(name)}: expected {' | '.join(PRESETS)}"
        )
    return {**data, "quant": {**quant, "recon": PRESETS[name] | others}}


def _problem(detail: Any, data: dict[str, Any], places: Places) -> str:
    """One error of pydantic in our words."""
    key = tuple(itertools.takewhile(lambda part: isinstance(part, str), detail["loc"]))  # not into lists
    known = (places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places)
    place = next((f"{place}: " for place in known), "")
    name = ".".join(key)
    if detail["type"] == "unexpected_keyword_argument":
        return f"{place}{name}: unknown key; {nearest(key)}"
    if detail["type"] == "value_error":
        return f"{place}{name}: {detail['ctx']['error']}"
    value = functools.reduce(operator.getitem, key, data)
    return f"{place}{name} = {_show(value)}: expected {expected(key)}"


def _show(value: Any) -> str:
    """A value as YAML would have it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
