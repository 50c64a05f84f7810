"""A folder of experiments: configs, the table of their finished runs, and a page made from both.

qdrop record exp RUN...             # adds runs to exp/results.jsonl and makes exp/README.md anew
"""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qdrop.commands.command import exit_status
from qdrop.config import HOW, Config, config_from_dict, config_to_dict, load_config
from qdrop.config.methods import METHODS
from qdrop.files import write_file
from qdrop.runs.page import page
from qdrop.runs.report import TABLE
from qdrop.runs.run_folder import PLACES
from qdrop.runs.table import Row, TableError, read, row_of, write

log = logging.getLogger("qdrop")

APART = frozenset({*HOW, "data.name", "process.seed", *(".".join(place) for place in PLACES)})
"""Settings that a command names by themselves, or not at all."""


@dataclass(frozen=True)
class Experiment:
    """A config in the folder of experiments."""

    path: str
    """The file, from the folder above: `exp/w2a4/res18/config.yaml`."""
    config: Config
    """What it sets."""

    @property
    def key(self) -> tuple[str, str, int, int | None]:
        """What a run has in common with its experiment: network, data, bits."""
        quant = self.config.quant
        a_bit = quant.a_qconfig.bit if quant.a_qconfig else None
        return self.config.model.type, self.config.data.type, quant.w_qconfig.bit, a_bit

    @cached_property
    def by_method(self) -> dict[str, Config]:
        """The same by each method there is."""
        settings = config_to_dict(self.config)
        return {method: config_from_dict(settings, [f"quant.method={method}"]) for method in METHODS}


def experiments(exp: Path) -> list[Experiment]:
    """All experiments of a folder, by path.

    Raises:
        ConfigError: If one cannot be read.
    """
    exp = exp.resolve()
    return [
        Experiment(file.relative_to(exp.parent).as_posix(), load_config(file))
        for file in sorted(exp.rglob("config.yaml"))
    ]


def record(exp: Path, runs: Sequence[Path] = ()) -> list[Row]:
    """Add finished runs to the table of experiments; one of the same settings, seed, weights and images is replaced.

    Args:
        exp: The folder of the experiments.
        runs: Run folders.

    Returns:
        All rows.

    Raises:
        TableError: If a run is not finished or of none of the experiments, or the table cannot be read.
        ConfigError: If a config cannot be read.
        OSError: If the table cannot be written.
    """
    rows = {row.identity: row for row in read(exp / TABLE)}
    for folder in runs:
        row = row_of(folder)
        log.info("%s: %s", folder, "replaces the run of these settings" if row.identity in rows else "added")
        rows[row.identity] = row
    known = experiments(exp)
    found = [replace(row, command=command(row, _experiment(row, known))) for row in rows.values()]
    if found:
        write(exp / TABLE, found)
    return found


def _experiment(row: Row, known: Sequence[Experiment]) -> Experiment:
    """The experiment that a run is one of."""
    key = Experiment("", row.config).key
    found = [experiment for experiment in known if experiment.key == key]
    if not found:
        raise TableError(
            f"{row.run}: {key[0]} on {key[1]} at {row.result.bits} is none of these experiments; add a config.yaml"
            " for it"
        )
    return found[0]


def command(row: Row, experiment: Experiment) -> str:
    """What does a run again: its experiment, and what was set beside it. `...` stands for places of a machine."""
    config = row.config
    words = ["qdrop", "quantize", "--config", experiment.path]
    words += ["data.path=..."] if config.data.path else []
    words += ["model.path=..."] if config.model.path not in ("auto", "embedded") else []
    ways = [[f"quant.method={method}", *changes(base, config)] for method, base in experiment.by_method.items()]
    shortest = min([*ways, changes(experiment.config, config)], key=lambda way: len(" ".join(way)))
    return " ".join([*words, *shortest, f"process.seed={row.result.seed}"])


def changes(before: Config, after: Config) -> list[str]:
    """Overrides, quoted for a shell, that turn settings into others; but for those that are named by themselves."""
    return list(_changes("", config_to_dict(before), config_to_dict(after)))


def _changes(key: str, before: Any, after: Any) -> Iterator[str]:
    if key in APART:
        return
    if isinstance(after, dict) and isinstance(before, dict) and after.keys() == before.keys():
        for name in after:
            inner = f".{name}" if name.isidentifier() else f"[{name}]"  # a pattern of names has dots of its own
            yield from _changes(f"{key}{inner}".lstrip("."), before[name], after[name])
    elif after != before:
        yield shlex.quote(f"{key}={json.dumps(_without_defaults(after))}")


def _without_defaults(value: Any) -> Any:
    """A value as it may be written: in a mapping, as of bits by patterns of names, null is what is left out."""
    return {k: _without_defaults(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.runs.experiments") -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exp", type=Path, help=f"folder of the experiments, with their configs and {TABLE}")
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="folder of a finished run; none: only the page"
    )
    args = parser.parse_args(argv)

    def work() -> None:
        if not args.exp.is_dir():
            raise TableError(f"{args.exp}: no such folder; expected that of the experiments")
        rows = record(args.exp, args.runs)
        write_file(args.exp / "README.md", page(args.exp, rows))
        log.info("%s: made from %d runs", args.exp / "README.md", len(rows))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
