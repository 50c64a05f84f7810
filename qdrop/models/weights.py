"""Where the weights of a model come from: the `path` of a config becomes a file on this machine, downloaded once.

info = resolve_weights("auto", "resnet18")
load_weights(model, info)
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import torch

from qdrop.errors import QdropError
from qdrop.files import expanded

logger = logging.getLogger(__name__)

_BRECQ = "https://github.com/yhhhli/BRECQ/releases/download/v1.0"
_ZOO = "https://download.openmmlab.com/mmdetection/v2.0"  # the last eight digits of a name begin the file's SHA-256
_FASTER, _RETINA = f"{_ZOO}/faster_rcnn/faster_rcnn", f"{_ZOO}/retinanet/retinanet"
PUBLISHED = {
    # The classifiers of the paper.
    "resnet18": f"{_BRECQ}/resnet18_imagenet.pth.tar",
    "resnet50": f"{_BRECQ}/resnet50_imagenet.pth.tar",
    "mobilenetv2": f"{_BRECQ}/mobilenetv2.pth.tar",
    "regnetx_600m": f"{_BRECQ}/regnet_600m.pth.tar",
    "regnetx_3200m": f"{_BRECQ}/regnet_3200m.pth.tar",
    "mnasnet": f"{_BRECQ}/mnasnet.pth.tar",
    # Its detectors.
    "faster_rcnn_r50_fpn": f"{_FASTER}_r50_fpn_2x_coco/"
    "faster_rcnn_r50_fpn_2x_coco_bbox_mAP-0.384_20200504_210434-a5d8aa15.pth",
    "faster_rcnn_r101_fpn": f"{_FASTER}_r101_fpn_2x_coco/"
    "faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth",
    "retinanet_r50_fpn": f"{_RETINA}_r50_fpn_2x_coco/retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth",
    "retinanet_r101_fpn": f"{_RETINA}_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth",
    # Others.
    "yolo_fastestv2": "https://github.com/dog-qiuqiu/Yolo-FastestV2/raw/ef96e53239e11e46ce568a096e11801cd55ecc9e/modelzoo/"
    "coco2017-0.241078ap-model.pth",
}
"""Addresses of full-precision checkpoints, by model type."""

ASSETS = Path(__file__).with_name("assets")
EMBEDDED = {"digits_resnet": "digits_resnet.safetensors"}
"""Files in it, which come with the package, by model type."""

SUFFIXES = (".pth", ".pth.tar", ".pt", ".safetensors")


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
    if path == "auto":
        url = _known(PUBLISHED, model_type, path)
        file = Path(urlsplit(url).path)
        return download(url, hub_folder() / file.name, file.stem[-8:] if url.startswith(_ZOO) else None)
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


def _known(table: Mapping[str, str], model_type: str, path: str) -> str:
    """What `table` has for `model_type`."""
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
