"""The folder of a run: resolved settings, environment, a log line per unit, the result, the quantized network."""

import json
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from qdrop import checkpoint
from qdrop.checkpoint import Checkpoint
from qdrop.config import Config
from qdrop.config_io import config_to_dict, save_config
from qdrop.files import write_file
from qdrop.models import WeightsInfo
from qdrop.quantization.plan import Plan

MODEL = "quantized.safetensors"
"""The quantized network in a run folder."""
PLACES = (("data", "path"), ("data", "classes"), ("data", "calib_from"), ("model", "path"), ("process", "out"))
"""Settings that name files and folders of one machine."""
PACKAGES = ("qdrop", "torch", "torchvision", "timm", "numpy", "scikit-learn")


class RunFolder:
    """Writes what a run leaves behind: resolved settings, environment, plan, log of units, result, network.

    Args:
        path: The folder; made if it is not there. Files of an earlier run in it are replaced.
        config: The run's settings.

    Raises:
        OSError: If the folder cannot be written to, at once and not after hours of work.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self._config = config
        path.mkdir(parents=True, exist_ok=True)
        save_config(config, path / "config.resolved.yaml")
        write_file(path / "log.jsonl", "")
        (path / "result.json").unlink(missing_ok=True)
        (path / MODEL).unlink(missing_ok=True)

    def environment(self, device: torch.device, weights: WeightsInfo | None) -> None:
        """Record versions, device, git revision, and checksum and source of the weights."""
        name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
        )
        self._write(
            "env.json",
            {
                "python": platform.python_version(),
                "platform": f"{platform.system()} {platform.machine()}",
                "packages": {package: _version(package) for package in PACKAGES},
                "device": str(device),
                "device_name": name,
                "threads": torch.get_num_threads(),
                "revision": revision(),
                "arguments": sys.argv[1:],
                "weights": weights and {"url": weights.url, "sha256": weights.sha256},
            },
        )

    def plan(self, plan: Plan) -> None:
        """Record what is quantized where."""
        self._write("plan.json", plan.to_dict())

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to `log.jsonl`."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def result(self, result: Any) -> None:
        """Record the outcome, a dataclass."""
        self._write("result.json", asdict(result))

    def settings(self) -> dict[str, Any]:
        """The settings as plain data, of files and folders only the last name: for a file that is passed on."""
        data = config_to_dict(self._config)
        for section, key in PLACES:
            place = data[section][key]
            data[section][key] = place and Path(place).name
        return data

    def model(self, outcome: Checkpoint) -> None:
        """Write the quantized network and read it back.

        Raises:
            CheckpointError: If the disk gives back something else.
        """
        checkpoint.write(outcome, self.path / MODEL)
        checkpoint.read(self.path / MODEL)

    def _write(self, name: str, data: dict[str, Any]) -> None:
        write_file(self.path / name, json.dumps(data, indent=1) + "\n")


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Inside: the package's log also goes to `run.log` in a run folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("qdrop")
    handler = logging.FileHandler(folder / "run.log", mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def revision() -> str | None:
    """Git revision of the package's source, `-dirty` if changed since; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, in MB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on every platform, and only needed here

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
