"""What runs found out, as a table.

qdrop report RUN...                 # run folders, or folders that hold some
qdrop report exp                    # every run on record in a table of experiments
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qdrop.commands.command import exit_status
from qdrop.runs.result import Result
from qdrop.runs.table import Row, TableError, read, row_of
from qdrop.tasks.task import WORDS

TABLE = "results.jsonl"
"""The table in a folder of experiments."""
WIDE = 1000
"""Columns where the output is no terminal."""


def rows(path: Path) -> list[tuple[str, Row]]:
    """The finished runs at a place, each with its name.

    Args:
        path: A run folder; a folder that holds some, at any depth; a folder of experiments; or its table.

    Raises:
        TableError: If there is none, or one cannot be read.
        OSError: If a folder cannot be read.
    """
    table = path / TABLE if path.is_dir() else path
    if table.is_file():
        return [(row.run, row) for row in read(table)]
    if not path.is_dir():
        raise TableError(f"{path}: no such folder; expected that of a run, or one that holds runs")
    found = [file.parent for file in sorted(path.rglob("result.json"))]
    if not found:
        raise TableError(f"{path}: no finished run in this folder; each leaves a result.json in its own")
    return [(str(path if folder == path else folder.relative_to(path)), row_of(folder)) for folder in found]


def table_of(runs: Sequence[tuple[str, Row]]) -> Table:
    """Runs as a table for the terminal, in the order given."""
    metrics = dict.fromkeys(WORDS.get(row.result.metric, row.result.metric) for _, row in runs)
    table = Table("run", "network", "data", "bits", "method", title=f"{', '.join(metrics)}, %")
    for column in ("iterations", "seed", "images", "full precision", "round-to-nearest", "outcome"):
        table.add_column(column, justify="right")
    for name, row in runs:
        result = row.result
        shown = _shown(result.compared)
        table.add_row(name, result.model, result.data, result.bits, row.method, *_counts(result), *shown)
    return table


def _counts(result: Result) -> Iterator[str]:
    """Iterations, seed and validation images."""
    yield f"{result.iters:,}" if result.iters else "-"
    yield str(result.seed)
    yield f"{result.validation_images:,}"


def _shown(figures: Sequence[float]) -> Iterator[str]:
    return (f"{figure:.2f}" for figure in figures)


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.runs.report") -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help=f"a run folder, a folder that holds some, or a {TABLE}"
    )
    paths = parser.parse_args(argv).runs

    def work() -> None:
        table = table_of([run for path in paths for run in rows(path)])
        console = Console()
        (console if console.is_terminal else Console(width=WIDE)).print(table)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
