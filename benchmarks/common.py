"""How benchmarks are run: arguments, the work, the record of it.

A benchmark is a function from its arguments to an :class:`Outcome`, and ends with

    if __name__ == "__main__":
        sys.exit(main(__doc__, "step", measure))

A full run is recorded under benchmarks/results and benchmarks/plots, from which `python -m benchmarks.report`
makes benchmarks/README.md. A quick one writes under runs/benchmarks and leaves the record alone.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.records import Outcome, Record, machine
from qdrop.runtime.memory import keeping_freed_memory
from qdrop.runtime.precision import layer_arithmetic

HERE = Path(__file__).parent
QUICK = HERE.parent / "runs" / "benchmarks"
"""Where quick runs write; not under version control."""


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


def _without_json(argv: Sequence[str]) -> list[str]:
    """Arguments without `--json FILE`, which is the reader's own business."""
    kept: list[str] = []
    skip = False
    for word in argv:
        if not skip and not word.startswith("--json"):
            kept.append(word)
        skip = word == "--json"
    return kept
