"""Hostile settings: from YAML, the command line and Python."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from hostile.case import Case, written
from qdrop.config import config_from_dict, config_to_dict, load_config

DIGITS = "9" * 5000
FULL = {"quant": {"recon": {}}}
NONSENSE = ("1" + "0" * 23, "-1" + "0" * 23, DIGITS, "1e999", ".nan", "-.inf")
"""No setting takes one of these numbers."""
ODD = (
    "-1",
    "0",
    "true",
    "null",
    "[]",
    "{}",
    "abc",
    "''",
    "0x_",
    "1:30",
    "~",
    "=",
    "2020-01-01",
    "[[1]]",
    "{a: {b: 1}}",
)
"""Some setting or other takes one of these."""


def numbers(folder: Path) -> Iterator[Case]:
    """Every setting with values that mean nothing, or would end in hours or gigabytes."""
    file = str(written(folder / "c.yaml", ""))
    for key, value in _settings():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        for text in (*NONSENSE, *ODD):
            refused = number and text in NONSENSE
            names = "command line" if refused else ""
            yield Case(f"{key}={text[:12]}", _load(file, f"{key}={text}"), names, must_refuse=refused)
    for text in ("quant.recon.iters=1" + "0" * 12, "data.batch_size=1" + "0" * 10, "data.num_workers=100000"):
        yield Case(text, _load(file, text), "command line")
    for text in (
        "process.threads=100000",
        "data.input_size=1000000",
        "data.std=[1e-300, 1, 1]",
        "data.mean=[1e39, 0, 0]",
    ):
        yield Case(text, _load(file, text), "command line")
    for key in ("data.path", "data.classes", "data.calib_from", "model.path", "model.type", "process.out"):
        yield Case(f"{key} with NUL", _load(file, f'{key}="a\\0b"'), "NUL")
        yield Case(f"{key} no UTF-8", _load(file, f"{key}=caf\udce9"), "command line")


def texts(folder: Path) -> Iterator[Case]:
    """Files that are no config, or more than one."""
    aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    aliases += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11))
    merges = "m0: &m0 {x: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}\n" for i in range(1, 30))
    contents = {
        "aliases ten deep": aliases,
        "merge keys thirty deep": merges,
        "a list that holds itself": "a: &a [*a]",
        "a mapping that holds itself": "&a quant: *a\n",
        "nested too deeply": "[" * 20000,
        "nested mappings": "a: " + "{a: " * 5000,
        "!!int abc": "quant: {calibrate: !!int abc}",
        "!!int of nothing": "quant: {calibrate: !!int ''}",
        "!!bool 17": "quant: {recon: {keep_gpu: !!bool 17}}",
        "!!float x": "quant: {recon: {weight: !!float x}}",
        "!!timestamp x": "quant: {calibrate: !!timestamp x}",
        "!!binary": "data: {path: !!binary '=='}",
        "!!python/name": "data: {path: !!python/name:os.system}",
        "!!python/object/apply": "data: {path: !!python/object/apply:os.system [touch hacked]}",
        "a tag of no meaning": "data: !x {}",
        "!!set": "quant: !!set {a}",
        "!!omap": "quant: !!omap [a: 1]",
        "a key of bytes": "!!binary aGVsbG8=: 1",
        "a key that is a list": "? [a, b]\n: 1",
        "a key that is a mapping": "{a: 1}: 2",
        "a key twice": "quant: {}\nquant: {}",
        "a number of 5,000 digits": f"quant: {{calibrate: {DIGITS}}}",
        "a key of 5,000 digits": f"{DIGITS}: 1",
        "a value of a megabyte": f"data: {{num_workers: {'x' * 1_000_000}}}",
        "five megabytes": "# " + "x" * 5_000_000,
        "a path with a NUL": 'data: {path: "a\\0b"}',
        "a base with a NUL": 'base: "a\\0b"',
        "half a surrogate pair": 'data: {path: "\\ud800"}',
        "an escape beyond Unicode": 'data: {path: "\\UFFFFFFFF"}',
        "only hello": "hello",
        "only a number": "3",
        "only true": "true",
        "only a date": "2020-01-01",
        "two documents": "a: 1\n---\nb: 1",
        "a lone dash": "- ",
        "a directive": "%YAML 9.9\n---\nquant: {}",
        "no YAML": "quant: [1, 2",
        "a base that is a list": "base: [1]",
        "a base that is itself": "base: c.yaml",
        "no UTF-8": b"quant: \xff\xfe",
        "control characters": b"quant: \x01\x02",
        "NUL bytes": bytes(1000),
        "a program": Path(sys.executable).read_bytes()[:100_000],
    }
    for number, (name, content) in enumerate(contents.items()):
        file = written(folder / str(number) / "c.yaml", content)
        yield Case(name, _load(str(file)), "c.yaml")
    secret = written(folder / "secret", "hunter2")
    for number, target in enumerate(("/etc/passwd", str(secret))):
        file = written(folder / f"base{number}" / "c.yaml", f"base: {target}")
        yield Case(f"base: {target}", _load(str(file)), target, never="hunter2" if number else "root:")
    file = written(folder / "zero" / "c.yaml", "base: /dev/zero")
    yield Case("base: /dev/zero", _load(str(file)), "/dev/zero")
    yield Case("--config /dev/zero", _load("/dev/zero"), "/dev/zero")
    yield Case("--config a NUL", _load("a\0b"))
    for text in ("=", "a", "a=[", ".=1", "a..b=1", "a[=1", "a[]=1", "x" * 100_000 + "=1", "a" + ".b" * 20000 + "=1"):
        yield Case(f"command line {text[:20]}", _load(str(written(folder / "d.yaml", "")), text), "command line")


def from_python(folder: Path) -> Iterator[Case]:
    """Dicts that are no settings."""
    itself: dict[str, object] = {}
    itself["quant"] = itself
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"quant": deep}
    values = {
        "a dict that holds itself": itself,
        "a list that holds itself": {"data": {"mean": _itself()}},
        "nested too deeply": deep,
        "a key of bytes": {b"quant": {}},
        "a key that is a tuple": {("quant", "recon"): {}},
        "an inner key of bytes": {"quant": {"overrides": {b"a": {"w_bit": 2}}}},
        "5,000 digits": {"quant": {"calibrate": 10**5000}},
        "not a number": {"quant": {"recon": {"weight": float("nan")}}},
        "infinite": {"quant": {"recon": {"weight": float("inf")}}},
        "bytes": {"data": {"path": b"x", "num_workers": b"1"}},
        "half a surrogate pair": {"data": {"path": "caf\udce9"}},
        "a NUL": {"data": {"path": "a\0b"}},
        "an object": {"quant": object()},
        "a class": {"quant": int},
        "a set": {"quant": {"a_qconfig", "w_qconfig"}},
        "a complex number": {"quant": {"recon": {"weight": 1j}}},
        "a function": {"quant": {"recon": {"iters": print}}},
        "1.5 iterations": {"quant": {"recon": {"iters": 1.5}}},
        "true bits": {"quant": {"w_qconfig": {"bit": True}}},
        "a text for a number": {"quant": {"calibrate": "many"}},
        "a seed that is a text": {"process": {"seed": "a"}},
        "a seed that is no whole number": {"process": {"seed": 1.5}},
        "a seed below 0": {"process": {"seed": -1}},
        "a seed above 2^63": {"process": {"seed": 2**64}},
        "std of almost 0": {"data": {"std": [1e-300, 1, 1]}},
    }
    for name, value in values.items():
        yield Case(name, lambda value=value: config_from_dict(value))
    for name, value in {"None": None, "a text": "quant", "a number": 3, "pairs": [("quant", {})]}.items():
        yield Case(name, lambda value=value: config_from_dict(value))


def _settings() -> Iterator[tuple[str, object]]:
    """Every setting with its default, by dotted name."""

    def leaves(data: dict[str, object], above: str) -> Iterator[tuple[str, object]]:
        for name, value in data.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f"{above}{name}.")
            else:
                yield f"{above}{name}", value

    return leaves(json.loads(json.dumps(config_to_dict(config_from_dict(FULL)))), "")


def _load(file: str, *overrides: str):
    return lambda: load_config(file, overrides)


def _itself() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value
