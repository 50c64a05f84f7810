"""What a run was carried out with: versions, device, revision."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from qdrop.models.weights import WeightsInfo

PACKAGES = ("qdrop", "torch", "torchvision", "timm", "numpy", "scikit-learn")


def environment(device: torch.device, weights: WeightsInfo | None) -> dict[str, Any]:
    """Versions, device, git revision, arguments, where they were given, and checksum and source of the weights."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {package: installed_version(package) for package in PACKAGES},
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "revision": revision(),
        "arguments": sys.argv[1:],
        "directory": str(Path.cwd()),
        "weights": weights and {"url": weights.url, "sha256": weights.sha256},
    }


def revision() -> str | None:
    """Git revision of the package's source, `-dirty` if changed since; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def installed_version(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
