"""Where the weights of a model come from, and how they get into it.

`resolve_weights` turns the `path` of a config into a file on this machine, downloading it once if need be;
`load_weights` reads that file and fills the model, or says precisely what does not fit.

    info = resolve_weights("auto", "resnet18")
    load_weights(model, info)
"""

import hashlib
import logging
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qdrop.errors import QdropError, first_line
from qdrop.files import expanded
from qdrop.sound import flaw

logger = logging.getLogger(__name__)

# The full-precision checkpoints of the paper: assets of a GitHub release, by model type.
RELEASE = "https://github.com/yhhhli/BRECQ/releases/download/v1.0"
PUBLISHED = {
    "resnet18": "resnet18_imagenet.pth.tar",
    "resnet50": "resnet50_imagenet.pth.tar",
    "mobilenetv2": "mobilenetv2.pth.tar",
    "regnetx_600m": "regnet_600m.pth.tar",
    "regnetx_3200m": "regnet_3200m.pth.tar",
    "mnasnet": "mnasnet.pth.tar",
}

# The full-precision detectors of the paper, by model type, in mmdetection's model zoo. The last eight digits
# of a name begin the file's SHA-256.
MODEL_ZOO = "https://download.openmmlab.com/mmdetection/v2.0"
DETECTORS = {
    "faster_rcnn_r50_fpn": "faster_rcnn/faster_rcnn_r50_fpn_2x_coco/"
    "faster_rcnn_r50_fpn_2x_coco_bbox_mAP-0.384_20200504_210434-a5d8aa15.pth",
    "faster_rcnn_r101_fpn": "faster_rcnn/faster_rcnn_r101_fpn_2x_coco/"
    "faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth",
    "retinanet_r50_fpn": "retinanet/retinanet_r50_fpn_2x_coco/retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth",
    "retinanet_r101_fpn": "retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth",
}

# Other published checkpoints, by model type.
ELSEWHERE = {
    "yolo_fastestv2": "https://github.com/dog-qiuqiu/Yolo-FastestV2/raw/ef96e53239e11e46ce568a096e11801cd55ecc9e/modelzoo/"
    "coco2017-0.241078ap-model.pth",
}

# The checkpoints that come with the package, by model type.
ASSETS = Path(__file__).with_name("assets")
EMBEDDED = {"digits_resnet": "digits_resnet.safetensors"}

SUFFIXES = (".pth", ".pth.tar", ".pt", ".safetensors")
KEYS_SHOWN = 8  # of a long list in an error

# What torch.load raises on a file that is no checkpoint, depending on where it stops making sense.
TORCH_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError),
    *(struct.error, AssertionError),  # a file of torch before 1.6
    *(zipfile.BadZipFile, TypeError, AttributeError, MemoryError),  # a forged one
)


class WeightsError(QdropError, ValueError):
    """Weights that cannot be found, downloaded, read, or fitted into the model."""


@dataclass(frozen=True)
class WeightsInfo:
    """A checkpoint on this machine, as plain data that goes into the run folder."""

    path: str
    """The file, absolute."""
    url: str | None
    """Where it was downloaded from; None for a local or embedded file."""
    sha256: str
    """Checksum of the file, 64 hexadecimal digits."""


def resolve_weights(path: str, model_type: str) -> WeightsInfo:
    """Find the checkpoint that `path` means, downloading it unless it is in the cache of torch.hub.

    Args:
        path: a file (`.pth`, `.pth.tar`, `.pt`, `.safetensors`), an http, https or file URL, `auto` for the
            published checkpoint of the model, or `embedded` for the one that comes with the package.
        model_type: `type` of the model in the config.

    Raises:
        WeightsError: the file does not exist, cannot be downloaded, or its kind is unknown.
        OSError: the file is in the home folder of a user that is not there.
    """
    if path == "embedded":
        return describe(ASSETS / _known(EMBEDDED, model_type, path))
    if path == "auto" and model_type in DETECTORS:
        file = Path(DETECTORS[model_type])
        return download(f"{MODEL_ZOO}/{file}", hub_folder() / file.name, sha256=file.stem[-8:])
    if path == "auto" and model_type in ELSEWHERE:
        url = ELSEWHERE[model_type]
        return download(url, hub_folder() / Path(url).name)
    if path == "auto":
        file = Path(_known(PUBLISHED, model_type, path))
        return download(f"{RELEASE}/{file}", hub_folder() / file)
    try:
        parts = urlsplit(path)
    except ValueError as error:
        raise WeightsError(f"model.path {path!r} is no URL: {error}") from error
    if "://" not in path and parts.scheme != "file":
        return _local(expanded(path))
    if parts.scheme == "file":
        return _local(Path(url2pathname(parts.path)))
    if not is_remote(path):
        raise WeightsError(f"model.path {path!r}: expected a file, an http(s) or file URL, 'auto' or 'embedded'")
    name = Path(unquote(parts.path)).name
    _check_suffix(name)
    # Different addresses often end in the same file name, so the cached file carries a mark of its address.
    return download(path, hub_folder() / f"{hashlib.sha256(path.encode()).hexdigest()[:8]}-{name}")


def is_remote(path: str) -> bool:
    """Whether weights come from another machine: `path` is an http or https URL."""
    return urlsplit(path).scheme in ("http", "https")


def hub_folder() -> Path:
    """The folder where torch.hub keeps checkpoints; moved by the environment variable TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def download(url: str, target: Path, sha256: str | None = None) -> WeightsInfo:
    """Download `url` to `target`, unless that file exists; it appears under its name only once complete.

    Args:
        url: address of the checkpoint.
        target: the file to write.
        sha256: the first digits of the checksum that what is downloaded must have; None: any.

    Raises:
        WeightsError: there is no network, no such address, no room, or the checksum is another.
    """
    if not target.is_file():
        logger.info("downloading %s to %s", url, target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), hash_prefix=sha256, progress=True)
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            raise WeightsError(
                f"{target.name} could not be downloaded from {url} ({error}); "
                f"without network, fetch it on another machine and place it at {target}"
            ) from error
    return describe(target, url)


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


def _known(table: Mapping[str, str], model_type: str, path: str) -> str:
    """The file name of `model_type` in `table`."""
    if model_type not in table:
        raise WeightsError(
            f"model.path '{path}': no such weights for {model_type!r}, only for {', '.join(table)}; "
            "give a checkpoint file or a URL, or null for random weights"
        )
    return table[model_type]


def describe(path: Path, url: str | None = None) -> WeightsInfo:
    """The record of a file."""
    with path.open("rb") as file:
        return WeightsInfo(str(path.absolute()), url, hashlib.file_digest(file, "sha256").hexdigest())


def _local(path: Path) -> WeightsInfo:
    """The record of a user's file."""
    if not path.is_file():
        raise WeightsError(f"no checkpoint file at {path.absolute()}; correct model.path or place it there")
    _check_suffix(path.name)
    return describe(path)


def _check_suffix(name: str) -> None:
    if not name.endswith(SUFFIXES):
        raise WeightsError(f"checkpoint {name!r}: expected a file name ending in {', '.join(SUFFIXES)}")


def _kind(value: Any) -> str:
    """What a value is, for an error."""
    return "nothing" if isinstance(value, Mapping) and not value else type(value).__name__


def _shorten(items: list[str]) -> str:
    """The first of a list, and how many more there are."""
    rest = len(items) - KEYS_SHOWN
    return ", ".join(items[:KEYS_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
