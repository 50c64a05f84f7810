"""How the weights of a checkpoint get into a model, or what precisely does not fit. Nothing in a file is executed."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qdrop.errors import first_line
from qdrop.models.weights import WeightsError, WeightsInfo
from qdrop.sound import flaw

KEYS_SHOWN = 8  # of a long list in an error

# What torch.load raises on a file that is no checkpoint, depending on where it stops making sense.
TORCH_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError),
    *(struct.error, AssertionError),  # a file of torch before 1.6
    *(zipfile.BadZipFile, TypeError, AttributeError, MemoryError),  # a forged one
)


def load_weights(model: nn.Module, info: WeightsInfo) -> None:
    """Fill `model` in place with a checkpoint; the counters `num_batches_tracked` may be missing from it.

    Args:
        model: the network; every other key of its state dict must be in the checkpoint with the same shape.
        info: the checkpoint, from `resolve_weights`.

    Raises:
        WeightsError: the file is not a checkpoint, or does not fit; the model is then left as it was.
    """
    state = read_state_dict(Path(info.path))
    expected = model.state_dict()
    missing = [key for key in expected if key not in state and not _is_counter(key)]
    unexpected = [key for key in state if key not in expected]
    misshaped = [
        f"{key} {list(tensor.shape)} instead of {list(expected[key].shape)}"
        for key, tensor in state.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    cast = [
        f"{key} {tensor.dtype} instead of {expected[key].dtype}"
        for key, tensor in state.items()
        if key in expected and tensor.is_floating_point() != expected[key].is_floating_point() and not _is_counter(key)
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped, "wrong type": cast}
    if any(problems.values()):
        lines = [f"  {what} ({len(keys)}): {_shorten(keys)}" for what, keys in problems.items() if keys]
        raise WeightsError(
            f"{info.path} does not fit {type(model).__name__}:\n"
            + "\n".join(lines)
            + "\nCheck that model.type and model.kwargs (num_classes) are those of the checkpoint."
        )
    if flaws := [f"{key} {told}" for key, tensor in state.items() if (told := flaw(tensor))]:
        raise WeightsError(f"{info.path}: {_shorten(flaws)}; expected dense tensors of finite numbers")
    model.load_state_dict(state, strict=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint on the CPU, by key.

    A dictionary under `model` or `state_dict` is unwrapped, and the prefix `module.` of DataParallel removed.
    Nothing in the file is executed.

    Raises:
        WeightsError: the file is damaged, holds other Python objects, or is not a dictionary of tensors.
    """
    content = _read(path)
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {_kind(content)}; expected tensors by key, as in model.state_dict()")
    odd = [
        f"{key!r} ({_kind(value)})"
        for key, value in content.items()
        if not isinstance(value, Tensor) or value.is_nested
    ]
    if odd:
        raise WeightsError(
            f"{path} is not a dictionary of tensors: {_shorten(odd)}; expected the content of "
            "model.state_dict(), alone or under the key 'model' or 'state_dict'"
        )
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return {str(key).removeprefix(prefix): value for key, value in content.items()}


def _read(path: Path) -> Any:
    """What is in the file, whatever it is."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_not_compressed(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *TORCH_ERRORS) as error:
        objects = _python_objects(path)
        if objects:
            raise WeightsError(
                f"{path} holds Python objects ({_shorten(objects)}), which could run any code when read; "
                "save the tensors alone: torch.save(model.state_dict(), file)"
            ) from None
        reason = f" ({first_line(error)})" if isinstance(error, SafetensorError | OSError | RuntimeError) else ""
        if "weights_only" in reason:  # torch advises to switch off what keeps a file from running code
            reason = ""
        raise WeightsError(
            f"{path}, {path.stat().st_size} bytes, cannot be read as a checkpoint{reason}; expected tensors "
            "written by torch.save or safetensors. If it was downloaded, delete it and start again"
        ) from None


def _check_not_compressed(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is: torch.save compresses nothing.

    Raises:
        RuntimeError: As torch does of what it cannot read.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise RuntimeError(f"an archive that unpacks to {size} bytes, which torch.save does not write")


def _is_counter(key: str) -> bool:
    """Whether a key is the counter of a batch norm, which nothing reads."""
    return key.split(".")[-1] == "num_batches_tracked"


def _python_objects(path: Path) -> list[str]:
    """Names of what a file of torch.save holds besides tensors; none where the file is of no such kind."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except TORCH_ERRORS:
        return []


def _kind(value: Any) -> str:
    """What a value is, for an error."""
    return "nothing" if isinstance(value, Mapping) and not value else type(value).__name__


def _shorten(items: list[str]) -> str:
    """The first of a list, and how many more there are."""
    rest = len(items) - KEYS_SHOWN
    return ", ".join(items[:KEYS_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
