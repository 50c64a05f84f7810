"""Finished units on disk: a run that is started again goes on behind them.

One small file per unit holds what was learned: integers, scales, zero points and the unit's report. Values in between
are not kept: they are computed again, the same, by running the finished units.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, fx, nn

from qdrop.checkpoint.container import CheckpointError, checksum, read_container, write_container
from qdrop.config import HOW, Config, config_to_dict, flat
from qdrop.errors import QdropError, first_line, shorten
from qdrop.files import remove_leftovers, write_file
from qdrop.graph.plan import Plan
from qdrop.quantization.state import quantizers
from qdrop.runs.environment import installed_version, revision
from qdrop.runs.run_folder import IDENTITY
from qdrop.solver.recon import UnitReport
from qdrop.sound import flaw
from qdrop.tasks.task import Images

FORMAT = "qdrop-unit"
VERSION = 1
CHECKSUMS = "checksums"
"""Part of the identity: checksums by the name of what they are of."""

VERSIONS = ("torch", "qdrop", "revision")
"""Parts of the identity that may differ, with a warning: work of hours is not refused over a changed comment."""

_REPORT = TypeAdapter(UnitReport)
log = logging.getLogger("qdrop")


class ResumeError(QdropError, ValueError):
    """Finished units are there, but of another run; names what differs and what to do."""


def identity(config: Config, plan: Plan, graph: fx.GraphModule, images: Images) -> dict[str, Any]:
    """All that the learned values depend on, as plain data; what at most moves their last bit is left out.

    Args:
        config: The run's settings.
        plan: Its plan.
        graph: The traced graph in full precision, for its weights.
        images: Calibration images `[N, C, H, W]`, or batches of them.
    """
    batches = (
        {f"images.{i}": batch for i, batch in enumerate(images)} if isinstance(images, list) else {"images": images}
    )
    data = config_to_dict(config)
    settings = {"quant": data["quant"], "process.seed": config.process.seed}
    weights = {name: value.detach().cpu().contiguous() for name, value in graph.state_dict().items()}
    return {
        **{key: value for key, value in flat(settings) if key not in HOW},
        CHECKSUMS: {
            "plan": checksum({"plan": json.dumps(plan.to_dict())}, {}),
            "weights": checksum({}, weights),
            "calibration images": checksum({}, {name: batch.cpu().contiguous() for name, batch in batches.items()}),
        },
        **dict(zip(VERSIONS, (torch.__version__, installed_version("qdrop"), revision()), strict=True)),
    }


class FinishedUnits:
    """The finished units of a run, each in a file of its own.

    Nothing is written before the first of them is: a run that cannot begin leaves the one before complete.

    Args:
        folder: Where they are; made with the first of them if it is not there.
        plan: The run's plan.
        run: What :func:`identity` returned.

    Raises:
        ResumeError: If the folder holds finished units of another run.
        OSError: If what counts for nothing in it cannot be removed.
    """

    def __init__(self, folder: Path, plan: Plan, run: Mapping[str, Any]) -> None:
        self._folder = folder
        self._run = run
        self._names = [unit.module for unit in plan.units]
        self.seconds = 0.0
        """What the units restored so far had taken, in seconds."""
        if len(self) > 0:
            self._check(run)
            log.info("going on with an interrupted run: %d of %d units are finished", len(self), len(self._names))
            return
        self._remove()

    def __len__(self) -> int:
        """How many units are finished."""
        there = (self._folder / IDENTITY).is_file()
        return sum(self._file(name).is_file() for name in self._names) if there else 0

    def restore(self, name: str, unit: nn.Module) -> UnitReport | None:
        """Give a unit its learned values back.

        Args:
            name: The unit's name in the plan.
            unit: Its module; its quantizers are changed in place.

        Returns:
            The report it was finished with; None if it is not finished, or its file is damaged.
        """
        file = self._file(name)
        if not file.is_file():
            return None
        try:
            metadata, tensors = read_container(file, FORMAT, VERSION)
            report = _REPORT.validate_json(metadata["report"])
            learned = {key: _fitting(tensors[key], value) for key, value in _learned(unit).items()}
        except (CheckpointError, KeyError, ValueError) as error:
            log.warning("%s: %s; the unit '%s' is reconstructed again", file, first_line(error), name)
            return None
        with torch.no_grad():
            for key, value in _learned(unit).items():
                value.copy_(learned[key])
        self.seconds += report.seconds
        return report

    def keep(self, unit: nn.Module, report: UnitReport) -> None:
        """Put a finished unit onto the disk.

        Raises:
            OSError: If it cannot be written; the units before it are still there.
        """
        if not (self._folder / IDENTITY).is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_file(self._folder / IDENTITY, json.dumps(self._run, indent=1) + "\n")
        tensors = {key: value.cpu().contiguous() for key, value in _learned(unit).items()}
        file = self._file(report.unit)
        write_container(file, FORMAT, VERSION, {"report": json.dumps(asdict(report))}, tensors)

    def clear(self) -> None:
        """Forget them: the run is complete."""
        self._remove()
        with suppress(OSError):  # not there, or something else is in it
            self._folder.rmdir()

    def _remove(self) -> None:
        """Delete our own files, and nothing that someone else put there."""
        first = self._folder / IDENTITY  # without it the rest counts for nothing
        for file in (first, *map(self._file, self._names)):
            file.unlink(missing_ok=True)
            remove_leftovers(file)

    def _file(self, name: str) -> Path:
        return self._folder / f"{self._names.index(name):04d}.safetensors"

    def _check(self, run: Mapping[str, Any]) -> None:
        """Refuse to mix two runs, and to throw finished work away unasked."""
        file = self._folder / IDENTITY
        try:
            before = json.loads(file.read_bytes())
            if not isinstance(before, dict) or not isinstance(before.get(CHECKSUMS, {}), dict):
                raise ValueError("expected an object, as a run writes it")
        except (ValueError, RecursionError) as error:
            raise ResumeError(f"{file} cannot be read: {error}; delete {self._folder} to start afresh") from error
        differing = dict(_differences(before, run))
        told = [words for key, words in differing.items() if key not in VERSIONS]
        if told:
            raise ResumeError(
                f"{self._folder} holds {len(self)} finished units of an interrupted run that was another one:"
                f" {shorten(told, most=8)}. Start it with the same settings to go on; or set process.out to"
                " another folder, or delete this one, to start afresh"
            )
        for words in differing.values():
            log.warning("the finished units are of another version: %s", words)


def _learned(unit: nn.Module) -> dict[str, Tensor]:
    """What reconstruction leaves in a unit's quantizers: a rounding is its integers now, and bits are in the plan."""
    return {
        f"{quantizer.spec.name}.{name}": value
        for quantizer in quantizers(unit)
        for name, value in quantizer.state_dict().items()
        if name not in ("_extra_state", *dict(quantizer.rounding.named_parameters(prefix="rounding")))
    }


def _fitting(found: Tensor, wanted: Tensor) -> Tensor:
    """A tensor that can take the place of another one.

    Raises:
        ValueError: If it is of another shape or type, or not finite.
    """
    told = flaw(found)
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        told = f"is {found.dtype} {list(found.shape)}"
    if told:
        raise ValueError(f"a tensor {told}; expected finite {wanted.dtype} {list(wanted.shape)}")
    return found


def _differences(before: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What differs, and how: `quant.recon.iters was 2000 and is 500`; of a checksum only that it does."""
    for key in sorted({*before, *run} - {CHECKSUMS}):
        if before.get(key) != run.get(key):
            yield key, f"{key} was {before.get(key)} and is {run.get(key)}"
    then, now = before.get(CHECKSUMS, {}), run.get(CHECKSUMS, {})
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            yield f"{CHECKSUMS}.{name}", f"the {name} differ"
