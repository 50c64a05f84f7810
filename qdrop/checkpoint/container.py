"""The container of what is saved: a safetensors file with a format name, a version and a checksum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qdrop.errors import QdropError
from qdrop.files import write_file

LONGEST_VERSION = 6
"""Digits of a version, at most."""


class CheckpointError(QdropError, ValueError):
    """A file that is no complete checkpoint, or a model that cannot be saved as one; names the file."""


def write_container(
    path: Path, form: str, version: int, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> None:
    """Write a file, whole or not at all; the same contents give the same bytes.

    Args:
        path: The file.
        form: Name of the format.
        version: Its version.
        metadata: Texts by name; none is called `format`, `format_version` or `sha256`.
        tensors: Contiguous, on the CPU, no two on the same memory.

    Raises:
        OSError: If it cannot be written; what was there before is then still there.
    """
    texts = {**metadata, "format": form, "format_version": str(version)}
    texts["sha256"] = checksum(texts, tensors)
    write_file(path, _in_order(save(dict(tensors), texts)))


def read_container(path: Path, form: str, version: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file that :func:`write_container` wrote.

    Args:
        path: The file.
        form: Name of the format that is expected.
        version: The newest version that the caller understands.

    Raises:
        CheckpointError: If the file is truncated, changed, of a newer version or of something else.
        OSError: If it cannot be read.
    """
    with path.open("rb"):  # the usual errors, with the usual words
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata, form, version)
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); expected one of format '{form}', as qdrop writes"
            " it. If it was copied or downloaded, do so again"
        ) from error
    told = metadata.pop("sha256", None)
    if told != (found := checksum(metadata, tensors)):
        raise CheckpointError(
            f"{path}: its contents have the checksum {found}, but it says {told}: it was damaged or changed after it"
            " was written"
        )
    return metadata, tensors


def checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of metadata and tensors by name: it finds damage, it does not prove an author."""
    digest = hashlib.sha256()
    for name in sorted(metadata):
        digest.update(f"{name}\n{metadata[name]}\n".encode())
    for name in sorted(tensors):
        digest.update(f"{name}\n{list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_format(path: Path, metadata: Mapping[str, str], form: str, version: int) -> None:
    found, number = metadata.get("format"), metadata.get("format_version", "")
    if found is None:
        raise CheckpointError(
            f"{path}: holds tensors, but not as qdrop writes them; expected '{form}', version '{version}'"
        )
    if found != form or not number.isdecimal() or len(number) > LONGEST_VERSION:
        raise CheckpointError(
            f"{path}: a safetensors file, but of format {found[:40]!r}, version {number[:40]!r}; expected {form!r},"
            f" version '{version}', as qdrop writes it"
        )
    if int(number) < version:
        raise CheckpointError(
            f"{path}: format version {number}, of an older qdrop; this one reads version {version}: quantize the"
            " network again, or read the file with the version that wrote it"
        )
    if int(number) > version:
        raise CheckpointError(
            f"{path}: format version {number}; this qdrop reads versions up to {version}: install a newer one"
        )


def _in_order(data: bytes) -> bytes:
    """The same safetensors file with its metadata in sorted order: the library's differs from call to call."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data stays aligned
    return len(text).to_bytes(8, "little") + text + data[end:]
