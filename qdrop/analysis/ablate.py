"""What each part of a method brings: one setting changed at a time, some seeds each; a table, CSV and a figure.

python -m qdrop.analysis.ablate drop --config exp/cifar10/resnet20/w2a2/config.yaml --set data.path=/data/cifar10
python -m qdrop.analysis.ablate iterations images --seeds 1 2 3 --config FILE --set quant.recon.preset=published

Each run has a folder of its own, as those of `qdrop quantize`: started again, a study goes on behind those that are
complete. What is set by `--set` holds for all of them.
"""

import argparse
import csv
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qdrop.analysis.command import need_pictures, study_parser
from qdrop.commands.command import exit_status
from qdrop.config import load_config
from qdrop.runs.page import mean_and_spread
from qdrop.runtime.openmp import run_program
from qdrop.solver.main_imagenet import run
from qdrop.tasks.task import WORDS

log = logging.getLogger("qdrop")

Variants = Mapping[str, tuple[str, ...]]
"""What is compared: settings by what to call them."""


def _images(count: int) -> tuple[str, ...]:
    few = (f"quant.recon.batch_size={min(count, 32)}", f"quant.calibrate_range={min(count, 256)}")
    return (f"quant.calibrate={count}", *few)


STUDIES: dict[str, Variants] = {
    "drop": {f"{keep:g}": (f"quant.recon.drop_prob={keep}",) for keep in (0.0, 0.25, 0.5, 0.75, 1.0)},
    "where": {
        "inputs and activations": ("quant.recon.input_prob=null",),
        "inputs": ("quant.recon.input_prob=0.5", "quant.recon.drop_prob=1.0"),
        "activations": ("quant.recon.input_prob=1.0",),
        "nowhere": ("quant.recon.input_prob=null", "quant.recon.drop_prob=1.0"),
    },
    "images": {f"{count:,}": _images(count) for count in (32, 128, 512, 1024, 4096)},
    "iterations": {f"{iters:,}": (f"quant.recon.iters={iters}",) for iters in (100, 300, 1000, 3000)},
    "network": {
        "units alone": ("quant.network=null",),
        **{f"then {iters:,} iterations": (f"quant.network.iters={iters}",) for iters in (300, 1000, 3000)},
    },
}
"""What is varied: `drop`, the probability of KEEPING a quantized value; `where` it is dropped; how many calibration
`images`; `iterations` for each unit; and over the whole `network` afterwards."""
AXES = {
    "drop": "probability of keeping a quantized value",
    "images": "calibration images",
    "iterations": "iterations for each unit",
}
"""What the axis of a figure says, where the name of the study says less."""
DOMAIN = "domain"
"""A study of its own, as it needs a folder: calibration images of the data itself, and others."""


@dataclass(frozen=True)
class Point:
    """One run."""

    study: str
    """What is varied."""
    variant: str
    """What it is here."""
    seed: int
    """Seed of the run."""
    figure: str
    """What was measured: the first of the task's figures."""
    value: float
    """Percent."""


def studies(names: Sequence[str], other: str | None) -> dict[str, Variants]:
    """Those named; that of the domain with its folder."""
    domain: Variants = {"own images": (), "other images": (f"data.calib_from={other}",)}
    return {name: domain if name == DOMAIN else STUDIES[name] for name in names}


def points(args: argparse.Namespace) -> list[Point]:
    """Every run that is asked for, seed by seed, so that an interrupted study has whole ones."""
    found = []
    for seed in args.seeds:
        for study, variants in studies(args.studies, args.other).items():
            for number, (variant, settings) in enumerate(variants.items()):
                config = load_config(args.config, [*args.overrides, *settings, f"process.seed={seed}"])
                log.info("--- %s: %s, seed %d", study, variant, seed)
                result = run(config, args.out / study / f"{number}-seed{seed}")
                name, value = next(iter(result.outcome.items()))
                found.append(Point(study, variant, seed, WORDS.get(name, name), value))
    return found


def table(found: Sequence[Point], study: str) -> Table:
    """Mean and spread of each variant."""
    made = Table(study, found[0].figure)
    for variant in dict.fromkeys(point.variant for point in found if point.study == study):
        made.add_row(variant, mean_and_spread(_values(found, study, variant)))
    return made


def _values(found: Sequence[Point], study: str, variant: str) -> list[float]:
    return [point.value for point in found if (point.study, point.variant) == (study, variant)]


def draw(found: Sequence[Point], study: str, file: Path) -> None:
    """Mean over seeds against what is varied, with every seed as a dot."""
    variants = list(dict.fromkeys(point.variant for point in found if point.study == study))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    means = [statistics.mean(_values(found, study, variant)) for variant in variants]
    axes.plot(range(len(variants)), means, color="#3a76af")
    for place, variant in enumerate(variants):
        values = _values(found, study, variant)
        axes.plot([place] * len(values), values, "o", color="#3a76af", alpha=0.6, markersize=5)
    axes.set_xticks(range(len(variants)), variants)
    axes.set_xlabel(AXES.get(study, study))
    axes.set_ylabel(f"{found[0].figure}, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def write(found: Sequence[Point], file: Path) -> None:
    """Every run as a line of CSV."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(("study", "variant", "seed", found[0].figure))
        lines.writerows((point.study, point.variant, point.seed, point.value) for point in found)


def measure(args: argparse.Namespace) -> None:
    """All runs, then what they come to."""
    need_pictures()
    found = points(args)
    write(found, args.out / "ablate.csv")
    for study in args.studies:
        Console().print(table(found, study))
        draw(found, study, args.out / f"{study}.png")
    log.info("figures and CSV: %s", args.out)


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = study_parser("ablate", __doc__)
    made.add_argument("studies", nargs="+", choices=[*STUDIES, DOMAIN], metavar="STUDY", help=" | ".join(STUDIES))
    made.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file with settings")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    made.add_argument("--other", metavar="FOLDER", help="calibration images of another domain, for the study `domain`")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    made = parser()
    args = made.parse_args(argv)
    if DOMAIN in args.studies and args.other is None:
        made.error(f"the study {DOMAIN} needs --other FOLDER, with images of another domain")
    return exit_status(lambda: measure(args))


if __name__ == "__main__":
    run_program(main)
