"""Settings from YAML files and the command line, with errors that name key, file and line.

    config = load_config("config.yaml", ["quant.recon.iters=100"])

A YAML file may name another to build on, ``base: ../base.yaml``, relative to its own folder. Values are plain
data: nothing is evaluated or interpolated.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qdrop.config.errors import ConfigError, Places, at, in_words, shown
from qdrop.config.merge import merge
from qdrop.config.methods import METHODS, settings_of
from qdrop.config.quant import PRESETS
from qdrop.config.schema import Config
from qdrop.config.yaml_text import Key, YamlError, dump, parse
from qdrop.errors import first_line
from qdrop.files import write_file

# a.b.c=value; a name with dots in it goes in brackets: quant.overrides[layer1.*].w_bit=4
OVERRIDE = re.compile(r"([^\s.=\[\]]+(?:\.[^\s.=\[\]]+|\[[^\s=\[\]]+\]){,20})=(.*)", re.DOTALL)
NAME = re.compile(r"\[([^\[\]]+)\]|([^.\[\]]+)")
NO_INTERPOLATION = "${...} is not supported, values are taken as they are written"
LARGEST = 1 << 20
"""Bytes of a config file, at most: of a device or a wrong file not everything is read."""

HOW = (
    *("process.device", "process.threads", "process.out"),
    *("data.batch_size", "data.num_workers", "data.pin_memory"),
    *("quant.recon.keep_gpu", "quant.recon.cache.device", "quant.recon.compile"),
)
"""Settings of where and how fast to work, not of what comes out: free to change in a run that is there."""

_ADAPTER = TypeAdapter(Config)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, and the ones it builds on; overrides such as ``quant.recon.iters=100`` come last."""
    return _overridden(*_read(Path(path)), overrides)


def config_from_dict(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Checks plain data, as from `config_to_dict`; overrides come last."""
    return _overridden(_written_out(_plain_data(data), {}), {}, overrides)


def _overridden(data: dict[str, Any], places: Places, overrides: Sequence[str]) -> Config:
    given: dict[str, Any] = {}
    for extra in _parse_overrides(overrides):
        given = merge(given, extra)
        places = places | dict.fromkeys(_keys(extra), "command line")
    settings = merge(data, _written_out(given, places))
    return _validate(merge(_of_network(settings), settings), places)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain data: dicts, lists, numbers, texts."""
    return _ADAPTER.dump_python(config, mode="json")


def flat(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value of nested data with its key: `quant.recon.iters`; of an empty mapping the mapping."""
    return ((".".join(key), value) for key, value in _leaves(data))


def what_counts(config: Config) -> dict[str, Any]:
    """The settings that what comes out of a run depends on, by dotted name: all but those of `HOW`.

    Of several overrides the order counts too: the last that matches decides.
    """
    settings = {key: value for key, value in flat(config_to_dict(config)) if key not in HOW}
    patterns = list(config.quant.overrides)
    return settings | {"quant.overrides": patterns} if len(patterns) > 1 else settings


def save_config(config: Config, path: str | Path) -> None:
    """Writes every setting as YAML; `load_config` reads it back."""
    write_file(Path(path), dump(config_to_dict(config)))


def _read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Places]:
    """The data of a file merged over that of its base; `above`: the files that led here."""
    data, places = _parse_file(path)
    data = _written_out(data, places)
    if "base" not in data:
        return data, places
    base, place = data.pop("base"), places.pop(("base",))
    if not isinstance(base, str) or "\0" in base:
        raise ConfigError(f"{place}: base = {shown(base)}: expected the path of a YAML file")
    file = Path(os.path.normpath(path.parent / base))
    if file.resolve() in [p.resolve() for p in (*above, path)]:
        raise ConfigError(f"{place}: base = {base}: the files build on each other in a circle")
    if not file.is_file():
        raise ConfigError(f"{place}: base = {base}: no such file: {file}")
    lower, lower_places = _read(file, (*above, path))
    return merge(lower, data), lower_places | places


def _parse_file(path: Path) -> tuple[dict[str, Any], Places]:
    """The plain data of one YAML file, and the line of each key."""
    try:
        data, lines = parse(_text(path))
    except YamlError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error}") from None
    if not isinstance(data, dict | None):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise ConfigError(f"{path}:1: expected sections (quant, model, data, process), got {kind}")
    return data or {}, {key: f"{path}:{line}" for key, line in lines.items()}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) <= LARGEST:
            return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    raise ConfigError(f"{path}: larger than {LARGEST} bytes; expected a config file")


def _parse_overrides(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """``a.b=value`` as nested data; the value is read as YAML, and nothing at all is null."""
    parsed: list[dict[str, Any]] = []
    problems = []
    for override in overrides:
        match = OVERRIDE.fullmatch(override)
        try:
            if not match:
                raise YamlError("expected key=value, as in quant.recon.iters=100")
            value, _ = parse(match[2])
        except YamlError as error:
            problems.append(f"command line: {shown(override)}: {error}")
            continue
        for bracketed, plain in reversed(NAME.findall(match[1])):
            value = {bracketed or plain: value}
        parsed.append(value)
    if problems:
        raise ConfigError(*problems)
    return parsed


def _leaves(data: dict[str, Any], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    for name, value in data.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _keys(data: dict[str, Any], above: Key = ()) -> Iterator[Key]:
    """Every key of nested data."""
    for name, value in data.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from _keys(value, (*above, name))


def _validate(data: dict[str, Any], places: Places) -> Config:
    """The settings, checked as JSON, in which mappings are sections and lists are tuples."""
    refused = [(key, value) for key, value in _leaves(data) if "${" in json.dumps(value)]
    if refused:
        raise ConfigError(
            *(f"{at(key, places)}{'.'.join(key)} = {shown(value)}: {NO_INTERPOLATION}" for key, value in refused)
        )
    try:
        return _ADAPTER.validate_json(json.dumps(data))
    except ValidationError as error:
        found = (in_words(detail, data, places) for detail in error.errors())
        raise ConfigError(*dict.fromkeys(found)) from None


def _of_network(settings: dict[str, Any]) -> dict[str, Any]:
    """How the network of a library wants its images: what is set, in whichever file, takes precedence."""
    model, data = ({} if settings.get(name) is None else settings[name] for name in ("model", "data"))
    if not isinstance(model, dict) or not isinstance(data, dict) or data.get("type", "imagenet") != "imagenet":
        return {}
    type, size = model.get("type"), data.get("input_size")
    if not isinstance(type, str) or ":" not in type:
        return {}
    from qdrop.models.preparation import preparation  # slow to import, and only needed for networks of libraries

    own = preparation(type, size if isinstance(size, int) and size > 0 else None)
    return {"data": own} if own else {}


def _plain_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a dict from Python holds, as JSON: a copy, its tuples lists, its numbers those of Python.

    Raises:
        ConfigError: If that cannot be, as of a dict that holds itself.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"the settings are a {type(data).__name__}; expected a dict of sections, as of config_to_dict"
        )
    try:
        text = json.dumps(data, default=_plain, ensure_ascii=False).encode()  # which half a surrogate pair is not
        plain: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError, RuntimeError) as error:
        raise ConfigError(f"the settings are no plain data: {first_line(error)}") from None
    return plain


def _plain(value: object) -> object:
    """A value that JSON does not know: of NumPy or a tensor the number it holds, else its text."""
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else str(value)


def _written_out(data: dict[str, Any], places: Places) -> dict[str, Any]:
    """The data of one file, or of the command line, with a preset and a method replaced by what they stand for.

    Those beside it take precedence, and it over those of the files below. A section that a method does without, as
    rounding to the nearest does without `recon`, is left out whatever stands beside it.
    """
    quant = data.get("quant")
    if not isinstance(quant, dict):
        return data
    quant, recon = dict(quant), quant.get("recon")
    if isinstance(recon, dict) and "preset" in recon:
        preset = PRESETS[_named(("quant", "recon", "preset"), recon["preset"], PRESETS, places)]
        quant["recon"] = merge(preset, {key: value for key, value in recon.items() if key != "preset"})
    if "method" in quant:
        name = _named(("quant", "method"), quant.pop("method"), METHODS, places)
        without = {key: None for key, value in METHODS[name].settings.items() if value is None}
        quant = merge(settings_of(name), quant) | without
    return {**data, "quant": quant}


def _named(key: Key, name: Any, table: Mapping[str, Any], places: Places) -> str:
    """The name of an entry of a table, which a key gives.

    Raises:
        ConfigError: If it is none.
    """
    if not isinstance(name, str) or name not in table:
        raise ConfigError(f"{at(key, places)}{'.'.join(key)} = {shown(name)}: expected {' | '.join(table)}")
    return name
