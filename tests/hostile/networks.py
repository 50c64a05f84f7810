"""Forged packed files, their checksum right: whoever forges one can compute it.

A good file is taken apart and each thing it says is replaced, one at a time. Nothing here knows what the description of
a network looks like, only that it is JSON.
"""

import base64
import json
import random
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import qdrop
from hostile.case import Case, written
from qdrop.checkpoint.container import checksum

COUNT = 1500
"""Of the several thousand changes to a description, chosen at random with a fixed seed."""
SIZE = 12
CONFIG = {"w_qconfig": {"observer": "MinMaxObserver"}, "a_qconfig": {"observer": "MinMaxObserver"}, "recon": None}
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**30), 1e308, float("nan"), float("inf")),
    *("", "x", "self", "getattr", "torch", "__class__", "_modules", "output", "input", "x" * 10_000, "a\0b", "\u202e"),
    *("device", "cuda", "dtype", "float64", "os.system", "torch.load", "aten.zeros.default", "builtins.eval"),
    *([], {}, [[]], [{}], {"node": "self"}, {"node": "nowhere"}, [10**9, 10**9], {"device": "cuda"}, "9" * 5000),
)


class Network(nn.Module):
    """A residual block between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.conv(x) + x)
        return self.head(torch.cat([self.pool(x).flatten(1)]))


@cache
def _good(folder: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a good file."""
    torch.manual_seed(0)
    quantized, _ = qdrop.quantize(Network(), torch.randn(8, 3, SIZE, SIZE), CONFIG)
    qdrop.save(quantized, folder / "good", {"seed": 3}, {"top1": 71.5})
    with safe_open(folder / "good", "pt") as file:
        return file.metadata(), load_file(folder / "good")


def _forged(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Path:
    texts = {key: text for key, text in metadata.items() if key != "sha256"}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)  # it may have no metadata
    save_file(load_file(path), path, texts | {"sha256": checksum(texts, tensors)})
    return path


def _use(path: Path) -> Callable[[], None]:
    """Load the network and run it: what is taken must give a tensor, or be refused by torch in its own words."""

    def use() -> None:
        network = qdrop.load(path)
        try:
            result = network(torch.zeros(2, 3, SIZE, SIZE))
        except RuntimeError:  # as of a dilation of 0, or more memory than there is: loading takes none
            return
        if not isinstance(result, Tensor):
            raise TypeError(f"the network gave a {type(result).__name__}")

    return use


def descriptions(folder: Path) -> Iterator[Case]:
    """Each thing that the description says, replaced or left out."""
    metadata, tensors = _good(folder)
    changes = [
        (key, place, value)
        for key, text in metadata.items()
        if (data := _decoded(text)) is not None
        for place in _places(data)
        for value in (*VALUES, KeyError)
    ]
    for number, (key, place, value) in enumerate(random.Random(0).sample(changes, min(COUNT, len(changes)))):
        data = _decoded(metadata[key])
        try:
            changed = _encoded(metadata[key], _replaced(data, place, value))
        except ValueError:
            continue
        path = _forged(folder / f"{number}", metadata | {key: changed}, tensors)
        yield Case(f"{key}{list(place)} = {str(value)[:40]!r}", _use(path), str(path), must_refuse=False)
        path.unlink()


def _decoded(text: str) -> Any:
    """What a text of the metadata stands for; None if it is no JSON object, compressed or not."""
    for read in (lambda: json.loads(text), lambda: json.loads(zlib.decompress(base64.b64decode(text)))):
        try:
            data = read()
        except (ValueError, zlib.error):
            continue
        if isinstance(data, dict):
            return data
    return None


def _encoded(like: str, data: Any) -> str:
    text = json.dumps(data)
    return text if like.startswith("{") else base64.b64encode(zlib.compress(text.encode())).decode()


def _places(data: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in nested data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from _places(value, (*above, key))


def _replaced(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The data with another value in a place; KeyError: with none."""
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return data


def renamed(folder: Path) -> Iterator[Case]:
    """A name that is used consistently, but means something to Python, torch or the file system."""
    metadata, tensors = _good(folder)
    everything = " ".join(json.dumps(_decoded(text)) for text in metadata.values() if _decoded(text) is not None)
    names = sorted({name.split(".")[0] for name in tensors} | {"relu", "relu_1", "flatten", "cat", "add"})
    for old in (name for name in names if f'"{name}' in everything):
        for new in (
            "self",
            "getattr",
            "torch",
            "import",
            "print",
            "__init__",
            "forward",
            "_forward_hooks",
            "a/b",
            "eval",
        ):
            texts = {
                key: text if _decoded(text) is None else _encoded(text, _renaming(_decoded(text), old, new))
                for key, text in metadata.items()
            }
            moved = {_rename(name, old, new): value for name, value in tensors.items()}
            path = _forged(folder / "forged", texts, moved)
            yield Case(f"{old} is called {new}", _use(path), str(path), must_refuse=False)


def _rename(text: str, old: str, new: str) -> str:
    return new + text[len(old) :] if text == old or text.startswith(f"{old}.") else text


def _renaming(data: Any, old: str, new: str) -> Any:
    if isinstance(data, str):
        return _rename(data, old, new)
    if isinstance(data, list):
        return [_renaming(value, old, new) for value in data]
    if isinstance(data, dict):
        return {_rename(key, old, new): _renaming(value, old, new) for key, value in data.items()}
    return data


def tensors(folder: Path) -> Iterator[Case]:
    """Each tensor of the file, of another type, shape or value, or missing."""
    metadata, good = _good(folder)
    for name, value in good.items():
        floating = value.is_floating_point()
        changes: dict[str, Tensor | None] = {
            "missing": None,
            "empty": value[:0] if value.dim() else value,
            "longer": torch.cat([value, value]) if value.dim() else value[None],
            "a scalar": value.flatten()[0].clone(),
            "one dimension more": value[None],
            "complex": value.to(torch.complex64),
            "bool": value.to(torch.bool),
            "float64": value.double(),
            "int64": value.long(),
            "uint8": value.to(torch.uint8),
            "float8": value.float().to(torch.float8_e4m3fn),
        }
        for number in (torch.nan, torch.inf, -torch.inf, 1e300):
            changes[f"with {number}"] = _with(value, number)
        for title, changed in changes.items():
            forged = {key: tensor for key, tensor in good.items() if key != name}
            path = _forged(folder / "forged", metadata, forged if changed is None else forged | {name: changed})
            refused = title == "missing" or (floating and title.startswith("with"))
            yield Case(f"{name}: {title}", _use(path), str(path), must_refuse=refused)
    path = _forged(folder / "forged", metadata, good | {"more.weight": torch.ones(3)})
    yield Case("one tensor more", _use(path), str(path))


def _with(value: Tensor, number: float) -> Tensor:
    changed = value.double() if abs(number) == 1e300 else value.float()
    changed = changed.clone()
    changed.view(-1)[0] = number
    return changed


def bytes_of_a_file(folder: Path) -> Iterator[Case]:
    """Damage, and headers that a good file never has."""
    metadata, good = _good(folder)
    content = (folder / "good").read_bytes()
    chosen = random.Random(0)
    for place in chosen.sample(range(len(content)), 300):
        path = written(folder / "forged", content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        yield Case(f"byte {place} changed", _use(path), str(path))
    for end in chosen.sample(range(len(content)), 50):
        path = written(folder / "forged", content[:end])
        yield Case(f"{end} bytes of it", _use(path), str(path))
    for version in ("9" * 5000, "-1", "1.0", "", "\u0663", "99", "1e9", "0x1", " 1", "0" * 5000 + "1", "NaN", "\u00b2"):
        path = _forged(folder / "forged", metadata | {"format_version": version}, good)
        yield Case(f"version {version[:10]!r}", _use(path), str(path))
    for key in metadata:
        for text in (
            "",
            "x",
            "[]",
            "null",
            "{}",
            "3",
            "\0",
            "[" * 100_000,
            "9" * 5000,
            "eJwDAAAAAAE=",
            "=" * 100,
            "\ufffd",
        ):
            path = _forged(folder / "forged", metadata | {key: text}, good)
            yield Case(
                f"{key} is {text[:10]!r}", _use(path), str(path), must_refuse=key not in ("config", "metrics", "sha256")
            )
        path = _forged(folder / "forged", {name: text for name, text in metadata.items() if name != key}, good)
        yield Case(f"{key} is missing", _use(path), str(path), must_refuse=key != "sha256")
    for title, unit in {"zeros": b" ", "lists": b"[],", "objects": b"{},", "digits": b"9"}.items():
        packed = zlib.compressobj(9)
        bomb = packed.compress(b'{"nodes": [')
        for _ in range(200):
            bomb += packed.compress(unit * (1 << 20))
        text = base64.b64encode(bomb + packed.compress(b"0]}") + packed.flush()).decode()
        for key in (name for name, good_text in metadata.items() if _decoded(good_text) is not None):
            path = _forged(folder / "forged", metadata | {key: text}, good)
            yield Case(f"{key} unpacks to gigabytes of {title}", _use(path), str(path))
