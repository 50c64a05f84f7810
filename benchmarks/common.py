"""What the benchmarks share: arguments, interleaved timing, the record of a run, tables and plots.

A benchmark is a function from its arguments to an :class:`Outcome`, and ends with

    if __name__ == "__main__":
        sys.exit(main(__doc__, "step", measure))

A full run is recorded under benchmarks/results and benchmarks/plots, from which `python -m benchmarks.report`
makes benchmarks/README.md. A quick one writes under runs/benchmarks and leaves the record alone.
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable

from qdrop.runs.environment import revision
from qdrop.runtime.memory import keeping_freed_memory
from qdrop.runtime.precision import layer_arithmetic

HERE = Path(__file__).parent
QUICK = HERE.parent / "runs" / "benchmarks"
"""Where quick runs write; not under version control."""
PACKAGES = ("torch", "torchvision", "numpy")
COLORS = ("#3a76af", "#d1605e", "#6a9f58", "#e7a13c", "#85609e", "#8c8c8c")


# ---- what a benchmark gives ----


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


# ---- running one ----


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


def arguments(doc: str, name: str, devices: Sequence[str] = ("cpu", "cuda")) -> argparse.ArgumentParser:
    """The arguments every benchmark takes; it may add its own. `devices`: where it can be run."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a minute or two, smaller or fewer cases; not recorded")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and machine here too")
    parser.add_argument("--device", choices=devices, default="cpu", help="default: %(default)s")
    return parser


def main(
    doc: str | None,
    name: str,
    measure: Callable[[argparse.Namespace], Outcome],
    parser: argparse.ArgumentParser | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a benchmark from the command line: measure, show, record.

    Args:
        doc: Docstring of its module; the first line is its title.
        name: Name of its module.
        measure: Does the work. `args.device` is a `torch.device`.
        parser: What :func:`arguments` gave, if the benchmark added arguments of its own.
        argv: Arguments; None: those of the process.

    Returns:
        Exit status.
    """
    doc = doc or name
    argv = sys.argv[1:] if argv is None else list(argv)
    args = (parser or arguments(doc, name)).parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch sees no GPU here", file=sys.stderr)
        return 1
    args.device = torch.device(args.device)
    torch.set_num_threads(args.threads)

    started = time.perf_counter()
    with layer_arithmetic(), keeping_freed_memory():  # as a run does, for all candidates alike
        outcome = measure(args)
    seconds = time.perf_counter() - started
    for table in outcome.tables:
        table.show()
    for note in outcome.notes:
        print(note)
    label = label_of(name, args.device)
    record = Record(
        benchmark=label,
        title=doc.strip().splitlines()[0].rstrip("."),
        command=outcome.command or shlex.join(["python", "-m", f"benchmarks.{name}", *_without_json(argv)]),
        quick=args.quick,
        seconds=None if outcome.command else round(seconds, 1),
        machine=asdict(machine(args.device)),
        figures=outcome.figures,
        tables=outcome.tables,
        notes=outcome.notes,
        plot=None if outcome.plot is None else f"plots/{label}.png",
    )
    keep(record, outcome.plot, QUICK if args.quick else HERE)
    if args.json is not None:
        record.write(args.json)
    return 0


def label_of(name: str, device: torch.device) -> str:
    """What the record of a benchmark is named."""
    return name if device.type == "cpu" else f"{name}-{device.type}"


def keep(record: Record, plot: Figure | None, folder: Path) -> None:
    """Write `folder/results/NAME.json` and `folder/plots/NAME.png`."""
    path = folder / "results" / f"{record.benchmark}.json"
    record.write(path)
    print(f"figures: {path}")
    if plot is not None and record.plot is not None:
        picture = folder / record.plot
        picture.parent.mkdir(parents=True, exist_ok=True)
        plot.savefig(picture, dpi=150)
        print(f"plot: {picture}")


# ---- timing ----


@dataclass(frozen=True)
class Timings:
    """Seconds of each candidate in each round."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Median seconds of a candidate."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Median over rounds of seconds of `name` over those of `base` in the same round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | None = None,
    warm_up: int = 1,
) -> Timings:
    """Time candidates in turns, so that a machine that slows down slows all of them.

    Args:
        candidates: Called without arguments, by name.
        rounds: How often each is timed; every other round goes backwards.
        device: Waited for before the clock is read, if it is a GPU.
        warm_up: Calls of each before the first that counts.
    """
    for candidate in candidates.values():
        for _ in range(warm_up):
            candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        names = list(candidates)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            seconds[name].append(seconds_of(candidates[name], device))
    return Timings(seconds)


def seconds_of(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall time of one call, with everything it left running on a GPU."""
    _wait_for(device)
    started = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - started


def printed_by(what: str, *arguments: str) -> str:
    """What a Python process of its own prints, for figures that depend on all that a process has done.

    Args:
        what: Its name where it fails.
        arguments: Of the interpreter, such as `-m` and a module.

    Raises:
        RuntimeError: If it fails; with what it said.
    """
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} failed: {done.stderr[-2000:]}")
    return done.stdout


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- plots ----


def axes(title: str, x: str, y: str, size: tuple[float, float] = (7.0, 4.2)) -> tuple[Figure, Axes]:
    """An empty plot in the common style."""
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.8)
    ax.set_axisbelow(True)
    return figure, ax


def bars(ax: Axes, groups: Sequence[str], series: Mapping[str, Sequence[float]], form: str = "{:.2f}") -> None:
    """Grouped bars with their values on top: a bar of every series in each group.

    Args:
        ax: Where.
        groups: Labels along the x axis.
        series: Heights by name, one for each group.
        form: How a value is written.
    """
    width = 0.8 / len(series)
    for number, (name, heights) in enumerate(series.items()):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(groups))]
        drawn = ax.bar(places, heights, width * 0.92, label=name, color=COLORS[number % len(COLORS)])
        ax.bar_label(drawn, [form.format(height) for height in heights], fontsize=8, padding=2)
    ax.set_xticks(range(len(groups)), groups)
    ax.margins(y=0.12)
    if len(series) > 1:
        ax.legend(frameon=False, fontsize=9)


# ---- small print ----


def _cpu_name() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _without_json(argv: Sequence[str]) -> list[str]:
    """Arguments without `--json FILE`, which is the reader's own business."""
    kept: list[str] = []
    skip = False
    for word in argv:
        if not skip and not word.startswith("--json"):
            kept.append(word)
        skip = word == "--json"
    return kept
