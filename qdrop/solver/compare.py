"""Run the main job at several bit widths, with and without the drop; print a table and draw it.

qdrop compare --config exp/quickstart/config.yaml quant.recon.iters=500

Started again, it goes on behind the runs that are complete: the same table and picture, at once. To run all of them
again, delete the folder or set `process.out` to another one.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from qdrop.config import ActivationQConfig, Config, ConfigError
from qdrop.openmp import run_program
from qdrop.solver.command import exit_status, parse_args, run_folder
from qdrop.solver.main_imagenet import run

SETTINGS = ((4, 4), (3, 3), (2, 4), (2, 2))
"""Bits of weights and activations, as in the paper's tables."""
METHODS = ("full precision", "round-to-nearest", "no drop", "QDrop")
COLORS = ("#8c8c8c", "#d1605e", "#e7ca60", "#3a76af")

log = logging.getLogger("qdrop")


@dataclasses.dataclass(frozen=True)
class Row:
    """Top-1 at one setting, percent."""

    name: str
    """For example W2A4."""
    top1: tuple[float, float, float, float]
    """In the order of `METHODS`."""


def compare(config: Config, out: Path) -> list[Row]:
    """Run every setting without the drop and with it.

    Args:
        config: Settings shared by all runs; needs `quant.recon` and `quant.a_qconfig`.
        out: Folder for the runs' own folders.

    Returns:
        A row per setting.

    Raises:
        ConfigError: If the config has no reconstruction or no activation quantizer.
    """
    rows = []
    for w_bit, a_bit in SETTINGS:
        name = f"W{w_bit}A{a_bit}"
        log.info("--- %s", name)
        with_drop = _at(config, w_bit, a_bit)
        without = run(_never_dropping(with_drop), out / f"{name.lower()}-no-drop")
        drop = run(with_drop, out / f"{name.lower()}-qdrop")
        full, nearest, learned = drop.compared
        rows.append(Row(name, (full, nearest, without.compared[2], learned)))
    return rows


def _at(config: Config, w_bit: int, a_bit: int) -> Config:
    """`config` at other bits."""
    quant = config.quant
    if quant.recon is None or quant.a_qconfig is None:
        raise ConfigError("a comparison needs quant.recon and quant.a_qconfig; neither may be null")
    activations: ActivationQConfig = dataclasses.replace(quant.a_qconfig, bit=a_bit)
    weights = dataclasses.replace(quant.w_qconfig, bit=w_bit)
    return dataclasses.replace(config, quant=dataclasses.replace(quant, a_qconfig=activations, w_qconfig=weights))


def _never_dropping(config: Config) -> Config:
    """`config` with every activation quantized, a unit's input too."""
    recon = config.quant.recon and dataclasses.replace(config.quant.recon, drop_prob=1.0, input_prob=None)
    return dataclasses.replace(config, quant=dataclasses.replace(config.quant, recon=recon))


def table(rows: Sequence[Row], title: str) -> Table:
    """Rows as a table for the terminal."""
    result = Table(title=title)
    result.add_column("bits")
    for method in METHODS:
        result.add_column(method, justify="right")
    for row in rows:
        result.add_row(row.name, *(f"{value:.1f}" for value in row.top1))
    return result


def draw(rows: Sequence[Row], title: str, file: Path) -> None:
    """Rows as grouped bars, saved to `file` (format by its suffix)."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.2
    for index, (method, color) in enumerate(zip(METHODS, COLORS, strict=True)):
        places = [group + (index - 1.5) * width for group in range(len(rows))]
        bars = axes.bar(places, [row.top1[index] for row in rows], width * 0.92, label=method, color=color)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    axes.set_xticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylabel("top-1, %")
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    axes.set_title(title, fontsize=11)
    figure.savefig(file, dpi=150)


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.solver.compare") -> int:
    """Entry point of the command line; returns the exit status."""
    matplotlib.use("Agg")

    def work() -> None:
        config, file = parse_args(
            argv, prog, "Quantize at W4A4, W3A3, W2A4 and W2A2, with the drop and without; show a table."
        )
        out = run_folder(config, file)
        out = out if config.process.out else out.with_name(f"compare-{out.name}")
        rows = compare(config, out)
        title = f"{config.model.type} on {config.data.name or config.data.type}, top-1"
        Console().print(table(rows, title))
        draw(rows, title, out / "comparison.png")
        log.info("picture: %s", out / "comparison.png")

    return exit_status(work)


if __name__ == "__main__":
    run_program(main)
