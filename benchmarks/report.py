"""The page of benchmarks, made from the records of full runs.

python -m benchmarks.report        # writes benchmarks/README.md from benchmarks/results/*.json
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import HERE
from benchmarks.records import Record

HEADER = """\
# Benchmarks

Made by `python -m benchmarks.report` from `results/*.json`, which hold every figure under a plain name; do not edit.
Each benchmark takes `--quick` (a minute or two, not recorded), `--threads N`, `--json FILE` and `--device cpu|cuda`
(`inference`: cpu).
Ratios are of candidates timed in turns within one run. Machines differ and are shared: compare ratios, not seconds.
A record stands for the revision that it names. Those from before `f6cfbbe` (`git log` has the order; at that commit it
was all of them) quantized twins of modules, not graphs captured with `torch.export`.

Words used here:

- *plain*: a step of reconstruction written in PyTorch straight from the formulas, as the published code does; of a
  whole run extrapolated from 10 steps of each unit. *Eager*: ours, not compiled.
- *exhaustive*: a range search that tries every candidate on the full tensor; extrapolated from the time of two of them.
- *work* and *passes*: what moving activations to the units costs, in full-precision passes of all images through the
  network; *quadratic*: running the network from the image again for each unit.
- *int8*: an exported file in 8-bit types; *int8+add*: the same with `quant.placement=integer`, before `f6cfbbe` with 8
  bits also for the operands of adds; *native*: with true 2- and 4-bit types.
- *anonymous*: memory that holds no pages of files, which the system could take back.
- *asleep*, *spinning*: how threads wait for each other; *busy*: as many other processes as threads take time.
- *agreement*: share of images for which the quantized network predicts what full precision does. Schedules are named by
  their learning rate of the rounding (3e-2 is that of the preset `fast`, 1e-3 that of `published`) or by what they
  change: *scales* is `quant.recon.scale_lr`, *rounding weight* `quant.recon.weight`, *exponent* `quant.recon.b_range`.
"""
NO_GPU = "No GPU has been measured yet.\n"


def report(folder: Path) -> str:
    """The text of `benchmarks/README.md`.

    Args:
        folder: Holds `results` and `plots`.

    Raises:
        TypeError: If a result is not a record; as :meth:`Record.read`.
    """
    records = [Record.read(file) for file in sorted((folder / "results").glob("*.json"))]
    measured = any(record.machine["gpu"] for record in records)
    sections = [text for record in records for text in section(record)]
    return "\n".join([HEADER, *([] if measured else [NO_GPU]), *sections])


def section(record: Record) -> Iterator[str]:
    """One benchmark: how to reproduce it, where it was measured, its tables and its plot."""
    yield f"## {record.title}\n"
    yield f"```bash\n{record.command}\n```\n"
    for table in record.tables:
        yield table.markdown() + "\n"
    for note in record.notes:
        yield note + "\n"
    if record.plot is not None:
        yield f"![{record.title}]({record.plot})\n"
    yield f"Measured on {place(record)}.\n"


def place(record: Record) -> str:
    """The machine and the versions in words."""
    machine = record.machine
    parts = [machine["gpu"]] if machine["gpu"] else []
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    parts += [f"{machine['cpu']} ({machine['cores']} cores, {machine['memory_gb']} GB, {threads})"]
    parts += [f"Python {machine['python']}"]
    parts += [f"{name} {number}" for name, number in machine["packages"].items()]
    parts += [f"revision {machine['revision']}"]
    if record.seconds is None:
        return ", ".join([*parts, "in several runs, of which this was the last"])
    minutes = max(1, round(record.seconds / 60))
    return ", ".join([*parts, f"in {minutes} minute{'s' if minutes > 1 else ''}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    try:
        text = report(HERE)
    except (OSError, TypeError, KeyError, ValueError) as error:
        print(f"error: benchmarks/results: {error}; expected what a benchmark wrote there", file=sys.stderr)
        return 1
    (HERE / "README.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
