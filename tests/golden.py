"""The golden fixtures and the rule that fills a network for them.

Used by tests in any folder: `from golden import fill_by_rule, golden_images, load_fixture`.
"""

import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

# The name of each network in the fixtures, and its `type` in a config.
GOLDEN_MODELS = {
    "res18": "resnet18",
    "res50": "resnet50",
    "mnv2": "mobilenetv2",
    "reg600m": "regnetx_600m",
    "reg3200m": "regnetx_3200m",
    "mnasx2": "mnasnet",
}

GOLDEN_DETECTORS = {
    "faster_rcnn_r50_fpn_2x": "faster_rcnn_r50_fpn",
    "faster_rcnn_r101_fpn_2x": "faster_rcnn_r101_fpn",
    "retinanet_r50_fpn_2x": "retinanet_r50_fpn",
    "retinanet_r101_fpn_2x": "retinanet_r101_fpn",
}


def fixtures_dir() -> Path:
    """The folder of the fixtures: $QDROP_FIXTURES, or shared/fixtures beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
    return Path(os.environ.get("QDROP_FIXTURES", beside))


def load_fixture(name: str) -> dict[str, Any]:
    """The fixture `name` (without .json); the running test is skipped where the file is absent."""
    path = fixtures_dir() / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"golden fixture {path} is absent; set QDROP_FIXTURES to the folder that holds it")
    return json.loads(path.read_text(encoding="utf-8"))


def _filled(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float64 values of one tensor of the state dict, which depend on its key and shape only."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape)
    if len(shape) >= 2:
        return random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    if leaf == "running_var":
        return random.uniform(0.5, 1.5, shape)
    if leaf == "weight":
        return random.uniform(0.5, 1.0, shape)
    return random.uniform(-0.2, 0.2, shape)  # running_mean, and biases of any kind


def fill_by_rule(model: nn.Module) -> nn.Module:
    """Fill every tensor of the state dict in place; returns `model` in eval mode."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(np.asarray(_filled(key, tuple(tensor.shape)), dtype=np.float32)))
    return model.eval()


def fill_detector(model: nn.Module) -> nn.Module:
    """As :func:`fill_by_rule`, but for keys ending in bn3.weight: without it deep maps grow until heads saturate."""
    fill_by_rule(model)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("bn3.weight"):
                random = np.random.RandomState(zlib.crc32(key.encode()))
                tensor.copy_(torch.from_numpy(random.uniform(0.1, 0.2, tuple(tensor.shape)).astype(np.float32)))
    return model


def golden_images(n: int, size: int) -> Tensor:
    """`n` images of `size` x `size` pixels, float32, [n, 3, size, size]."""
    values = np.random.RandomState(0).standard_normal((n, 3, size, size))
    return torch.from_numpy(values.astype(np.float32))
