"""What a benchmark finds, and how it is kept: figures, tables, the machine."""

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable

from qdrop.runs.environment import revision

PACKAGES = ("torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, with a caption in words."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join([self.caption, "", *(f"| {' | '.join(line)} |" for line in lines)])

    def show(self) -> None:
        """Print it, as wide as its cells need it."""
        table = RichTable(*self.columns)
        for row in self.rows:
            table.add_row(*row)
        wide = sum(max(map(len, column)) + 3 for column in zip(self.columns, *self.rows, strict=True)) + 1
        print(self.caption)
        Console(width=wide).print(table)


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found."""

    figures: dict[str, float]
    """Every figure under a plain name, such as `resnet20.seconds`; the unit is in the name or it is a ratio."""
    tables: tuple[Table, ...]
    """The same for readers."""
    plot: Figure | None = None
    """A picture of it."""
    notes: tuple[str, ...] = ()
    """What one must know to read the figures: sentences."""
    command: str | None = None
    """What reproduces the figures where they are of several runs; None: the command of this one."""


@dataclass(frozen=True)
class Record:
    """An outcome with what it takes to reproduce it, as kept in a JSON file."""

    benchmark: str
    title: str
    command: str
    quick: bool
    seconds: float | None
    """How long it took; None: several runs, of which only the last is known."""
    machine: dict[str, Any]
    figures: dict[str, float]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    plot: str | None = None

    def write(self, path: Path) -> None:
        """Write it as JSON, in a folder that is made if it is not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Record":
        """What :meth:`write` wrote.

        Raises:
            TypeError: If the file holds something else.
        """
        data = json.loads(path.read_text(encoding="utf-8"))
        tables = tuple(
            Table(t["caption"], tuple(t["columns"]), tuple(map(tuple, t["rows"]))) for t in data.pop("tables")
        )
        return cls(tables=tables, notes=tuple(data.pop("notes")), **data)


@dataclass(frozen=True)
class Machine:
    """The machine and the versions that figures depend on."""

    cpu: str
    cores: int
    memory_gb: int
    gpu: str | None
    threads: int
    python: str
    packages: dict[str, str] = field(default_factory=dict)
    revision: str | None = None


def machine(device: torch.device) -> Machine:
    """This machine; its GPU only if that is what is measured."""
    return Machine(
        cpu=_cpu_name(),
        cores=psutil.cpu_count() or 1,
        memory_gb=round(psutil.virtual_memory().total / 2**30),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        packages={package: version(package) for package in PACKAGES},
        revision=revision(),
    )


def _cpu_name() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
