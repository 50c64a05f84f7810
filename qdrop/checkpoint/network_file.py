"""The file of a network that a command is given: where it lies and what kind it is.

file = find_network("res18-w2a4", FileKind.CHECKPOINT, FileKind.ONNX)
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from qdrop.errors import QdropError
from qdrop.runs.run_folder import MODEL

LONGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, at most: the format's own limit."""


class NetworkFileError(QdropError, ValueError):
    """A file of another kind than those that a command takes; says which it is and which those are."""


class FileKind(StrEnum):
    """What a file holds, told by its first bytes: its name may be anything."""

    CHECKPOINT = "a packed checkpoint (safetensors)"
    ONNX = "an ONNX file"
    ARCHIVE = "an archive as torch.save and torch.export write it"
    EMPTY = "an empty file"
    OTHER = "a file of another kind"


@dataclass(frozen=True)
class NetworkFile:
    """A file and its kind."""

    path: Path
    kind: FileKind


def find_network(path: str | Path, *accepted: FileKind) -> NetworkFile:
    """The file that a user names: of a run folder, the checkpoint in it.

    Args:
        path: A file or a run folder.
        accepted: The kinds that can be used.

    Raises:
        NetworkFileError: If it is of none of these kinds, or a folder without a checkpoint.
        OSError: If it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / MODEL).exists():
            raise NetworkFileError(f"{path}: no {MODEL} in this folder; expected that of a finished run, or a file")
        path /= MODEL
    with path.open("rb") as file:
        kind = _kind(file.read(9))
    if kind not in accepted:
        folder = f", or a run folder with its {MODEL}" if FileKind.CHECKPOINT in accepted else ""
        raise NetworkFileError(f"{path}: {kind}; expected {' or '.join(accepted)}{folder}")
    return NetworkFile(path, kind)


def _kind(start: bytes) -> FileKind:
    """The kind of a file with these first nine bytes."""
    if not start:
        return FileKind.EMPTY
    if start.startswith(b"PK\x03\x04"):  # zip
        return FileKind.ARCHIVE
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER:
        return FileKind.CHECKPOINT
    if start[0] == 0x08 and start[1:2] < b"\x80":  # protobuf: field 1 is a number, ONNX's version of its own format
        return FileKind.ONNX
    return FileKind.OTHER
