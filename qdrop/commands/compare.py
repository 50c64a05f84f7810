"""Run the main job at several bit widths by several methods; print a table and draw it.

qdrop compare --config exp/quickstart/config.yaml quant.recon.iters=500
qdrop compare --methods brecq qdrop qdrop-e2e --config exp/cifar10/resnet20/w2a4/config.yaml data.path=/data/cifar10

Started again, it goes on behind the runs that are complete: the same table and picture, at once. To run all of them
again, delete the folder or set `process.out` to another one.
"""

import dataclasses
import logging
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qdrop.commands.command import exit_status, run_folder, run_parser
from qdrop.config import config_from_dict, config_to_dict, load_config
from qdrop.config.methods import METHODS
from qdrop.extras import extra
from qdrop.runtime.openmp import run_program
from qdrop.solver.main_imagenet import run
from qdrop.tasks.task import Figures

SETTINGS = ((4, 4), (3, 3), (2, 4), (2, 2))
"""Bits of weights and activations, as in the paper's tables."""
DEFAULT = ("qdrop", "qdrop-e2e")
"""Methods that are compared unless others are named; full precision and round-to-nearest come with any."""
COLORS = ("#8c8c8c", "#d1605e", "#e7ca60", "#3a76af", "#6aa56e", "#8d6cab")

log = logging.getLogger("qdrop")


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found at one setting, percent."""

    name: str
    """For example W2A4."""
    figures: dict[str, float]
    """By what it is of: full precision, round-to-nearest, then the title of each method."""


def compare(file: Path, overrides: Sequence[str], methods: Sequence[str], out: Path) -> list[Row]:
    """Run every setting by every method.

    Args:
        file: The config all runs share.
        overrides: Settings in the place of the file's.
        methods: Names from :data:`qdrop.config.methods.METHODS`.
        out: Folder for the runs' own folders.

    Returns:
        A row per setting.

    Raises:
        ConfigError: If a setting is refused.
    """
    rows = []
    for w_bit, a_bit in SETTINGS:
        name = f"W{w_bit}A{a_bit}"
        bits = (f"quant.w_qconfig.bit={w_bit}", f"quant.a_qconfig.bit={a_bit}")
        figures: dict[str, float] = {}
        for method in methods:
            log.info("--- %s by %s", name, method)
            shared = config_to_dict(load_config(file, [*overrides, *bits]))
            config = config_from_dict(shared, [f"quant.method={method}"])
            result = run(config, out / f"{name.lower()}-{method}")
            figures |= {"full precision": first(result.full), "round-to-nearest": first(result.nearest)}
            figures[METHODS[method].title] = first(result.outcome)
        rows.append(Row(name, figures))
    return rows


def first(figures: Figures) -> float:
    """The figure that networks are compared by."""
    return next(iter(figures.values()))


def table(rows: Sequence[Row], title: str) -> Table:
    """Rows as a table for the terminal."""
    result = Table("bits", title=title)
    for method in rows[0].figures:
        result.add_column(method, justify="right")
    for row in rows:
        result.add_row(row.name, *(f"{value:.1f}" for value in row.figures.values()))
    return result


def draw(rows: Sequence[Row], title: str, file: Path) -> None:
    """Rows as grouped bars, saved to `file` (format by its suffix)."""
    methods = list(rows[0].figures)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for index, (method, color) in enumerate(zip(methods, cycle(COLORS), strict=False)):
        places = [group + (index - (len(methods) - 1) / 2) * width for group in range(len(rows))]
        bars = axes.bar(places, [row.figures[method] for row in rows], width * 0.92, label=method, color=color)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    axes.set_xticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylabel("%")
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    axes.set_title(title, fontsize=11)
    figure.savefig(file, dpi=150)


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.commands.compare") -> int:
    """Entry point of the command line; returns the exit status."""
    parser = run_parser(prog, "Quantize at W4A4, W3A3, W2A4 and W2A2 by several methods; show a table.")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(DEFAULT), metavar="METHOD", help=" | ".join(METHODS)
    )
    args = parser.parse_intermixed_args(argv)

    def work() -> None:
        with extra("plots", "pictures"):  # known now rather than after hours
            import matplotlib.figure  # noqa: F401
        config = load_config(args.config, args.overrides)
        out = run_folder(config, args.config)
        out = out if config.process.out else out.with_name(f"compare-{out.name}")
        rows = compare(args.config, args.overrides, args.methods, out)
        title = f"{config.model.type} on {config.data.name or config.data.type}"
        Console().print(table(rows, title))
        draw(rows, title, out / "comparison.png")
        log.info("picture: %s", out / "comparison.png")

    return exit_status(work)


if __name__ == "__main__":
    run_program(main)
