"""The folder of a run: resolved settings, environment, a log line per unit, the result, the quantized network."""

import errno
import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from qdrop import checkpoint
from qdrop.checkpoint import Checkpoint
from qdrop.config import Config, ProcessConfig, config_to_dict, load_config, save_config, what_counts
from qdrop.export.options import default_paths
from qdrop.files import expanded, remove_leftovers, write_file
from qdrop.graph.plan import Plan
from qdrop.models.weights import WeightsInfo, is_remote, resolve_weights
from qdrop.quantization.spec import Kind
from qdrop.runs.environment import environment
from qdrop.runs.result import Result

MODEL = "quantized.safetensors"
"""The quantized network in a run folder."""
RESUME = "resume"
"""The folder of an interrupted run's finished units in it."""
IDENTITY = "run.json"
"""In that one: what the run was. It goes first once the run is complete: without it the rest counts for nothing."""
SETTINGS = "config.resolved.yaml"
"""All settings of the run."""
FILES = (".probe", SETTINGS, "plan.json", "env.json", "log.jsonl", "result.json", MODEL)
"""What a run writes into its folder."""
PLACES = (("data", "path"), ("data", "classes"), ("data", "calib_from"), ("model", "path"))
"""Settings that name files and folders of one machine."""

log = logging.getLogger("qdrop")


class RunFolder:
    """Writes what a run leaves behind: settings, environment, plan, log of units, result, network.

    Args:
        path: The folder; made if it is not there. No other process runs in it, see :func:`qdrop.runs.scopes.locked`.

    Raises:
        OSError: If the folder cannot be written to, at once and not after hours of work.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            remove_leftovers(path / name)
        write_file(path / ".probe", "")
        (path / ".probe").unlink()

    def begin(self, config: Config, plan: Plan, device: torch.device, weights: WeightsInfo | None) -> None:
        """Record settings, plan and environment in place of an earlier run's; its log, results and exports go.

        A warning tells that a finished run of other settings or weights is replaced.

        Raises:
            OSError: If the disk has no room for what the run may write; nothing is changed then.
        """
        self._check_room(plan)
        if (self.path / "result.json").exists() and not _same_run(self.path, config, weights):
            log.warning("%s holds a finished run of other settings or weights: it is replaced from here on", self.path)
        network = self.path / MODEL
        for path in (self.path / "result.json", network, *default_paths(network)):
            path.unlink(missing_ok=True)
        save_config(config, self.path / SETTINGS)
        write_file(self.path / "log.jsonl", "")
        self._write("plan.json", plan.to_dict())
        self._write("env.json", environment(device, weights))

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to `log.jsonl`."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def result(self, result: Result) -> None:
        """Record the outcome, last of all: with it the run is complete."""
        self._write("result.json", result.to_dict())

    def model(self, outcome: Checkpoint) -> None:
        """Write the quantized network and read it back.

        Raises:
            CheckpointError: If the disk gives back something else.
        """
        checkpoint.write(outcome, self.path / MODEL)
        checkpoint.read(self.path / MODEL)

    def _check_room(self, plan: Plan) -> None:
        weights = sum(math.prod(spec.shape) for spec in plan.quantizers if spec.kind is Kind.WEIGHT)
        needed = 2.5 * weights + 4e6  # a byte in a finished unit, another at most in the network; floats, logs
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{free / 1e6:.0f} MB free, but the run may write {needed / 1e6:.0f} MB; make room or set process.out",
                str(self.path),
            )

    def _write(self, name: str, data: dict[str, Any]) -> None:
        write_file(self.path / name, json.dumps(data, indent=1) + "\n")


def portable(config: Config) -> dict[str, Any]:
    """Settings as plain data, for a file that is passed on to another machine.

    Of files and folders only the last name stays, of the process only the seed: that machine may have no such GPU.
    """
    data = config_to_dict(replace(config, process=ProcessConfig(seed=config.process.seed)))
    for section, key in PLACES:
        place = data[section][key]
        data[section][key] = place and _last_name(place)
    return data


def data_of_run(file: Path, recorded: dict[str, Any]) -> dict[str, str]:
    """Where the data of a run lies: `path` and `classes` of the section `data`, as far as they can be told.

    Args:
        file: A network in a run folder, beside the settings and the environment of that run.
        recorded: The section `data` in the file itself, see :func:`portable`. A place counts if it has the name
            recorded there: the file may come from elsewhere.
    """
    try:
        config = load_config(file.with_name(SETTINGS))
        environment = json.loads(file.with_name("env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a file that lies alone
        return {}
    folder = Path(environment.get("directory", "."))  # where the run was started
    places = {"path": config.data.path, "classes": config.data.classes}
    return {
        key: str(folder / expanded(place))
        for key, place in places.items()
        if place and recorded.get(key) == _last_name(place)
    }


def _last_name(place: str) -> str:
    """Of a path or a URL; what stands behind that in a URL may be a secret."""
    return Path(unquote(urlsplit(place).path) if "://" in place else place).name


def complete(folder: Path, config: Config) -> Result | None:
    """The result of a run of these settings that has ended; None if there is none, or none that can be read.

    Args:
        folder: The run folder.
        config: All settings; those of how to work do not count.
    """
    if (folder / RESUME / IDENTITY).exists() or not (folder / MODEL).is_file():
        return None
    try:
        same = _same_run(folder, config, _local_weights(config))
        return Result.read(folder / "result.json") if same else None
    except (
        OSError,
        TypeError,
        ValueError,
        RecursionError,
    ):  # an unfinished run, one of another version, or no weights any more
        return None


def _local_weights(config: Config) -> WeightsInfo | None:
    """A local file of weights as it is now; None where they come from elsewhere, or from nowhere."""
    path = config.model.path
    return None if path is None or path == "auto" or is_remote(path) else resolve_weights(path, config.model.type)


def _same_run(folder: Path, config: Config, weights: WeightsInfo | None) -> bool:
    """Whether a folder's settings, as far as they count, and its weights are these; not if they cannot be read.

    Args:
        folder: The run folder.
        config: The settings.
        weights: The weights; None: whatever they were.
    """
    try:
        before = load_config(folder / SETTINGS)
        if weights is not None:
            recorded = json.loads((folder / "env.json").read_text(encoding="utf-8"))["weights"]
            if recorded["sha256"] != weights.sha256:
                return False
    except (OSError, TypeError, KeyError, ValueError, RecursionError):
        return False
    return what_counts(before) == what_counts(config)
