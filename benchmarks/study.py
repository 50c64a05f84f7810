"""A study of schedules: accuracy against iterations, and single settings of one schedule changed.

What a study is of is a :class:`Study`; running it, and its tables and plot, are the same for all networks.
"""

import argparse
import json
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import qdrop
from benchmarks import common
from benchmarks.common import HERE, QUICK, arguments, label_of
from benchmarks.plots import COLORS, axes
from benchmarks.records import Outcome, Record, Table
from qdrop.config import ActivationQConfig, DataConfig, QuantConfig, ReconConfig
from qdrop.files import write_file
from qdrop.models import build_model
from qdrop.runs.page import mean_and_spread
from qdrop.solver.imagenet_util import calibration_images, validation_loader
from qdrop.tasks.classification.accuracy import accuracy

PUBLISHED: dict[str, Any] = {"round_lr": 1e-3, "scale_lr": 4e-5}
FAST: dict[str, Any] = {"round_lr": 3e-2, "scale_lr": 4e-5}
"""The rates of the published schedule and of the preset `fast`; they are those of Adam."""
FASTER: dict[str, Any] = FAST | {"round_lr": 1e-1}
"""Those of `fast` with a rounding rate that few iterations may want."""
BITS = {"W2A4": (2, 4), "W2A2": (2, 2)}
Group = tuple[str, str, int]
"""Bits, schedule, iterations."""
Key = tuple[str, str, int, int]
"""Bits, schedule, iterations, seed."""


@dataclass(frozen=True)
class Study:
    """What is compared, and on what."""

    name: str
    """The module of the benchmark, and the name of its record."""
    title: str
    """Of the plot."""
    network: str
    """As `model.type`."""
    data: DataConfig
    """Where from, without the path."""
    quant: QuantConfig
    """What all runs share; `quant.calibrate` images are calibrated on."""
    held_out: int
    """How many other training images the schedules are compared on."""
    schedules: Mapping[str, dict[str, Any]]
    """What is compared: settings of `quant.recon` by name."""
    factors: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """One setting after the other of the schedule with the settings `FAST`, changed."""
    iters: tuple[int, ...] = (100, 300, 1000)
    """Numbers of iterations, unless the command line names others."""

    def small(self) -> "Study":
        """The same on so few images that a run takes a minute; its figures say nothing."""
        quant = replace(self.quant, calibrate=64, calibrate_range=32)
        return replace(self, quant=quant, held_out=64, data=replace(self.data, val_limit=100))

    @property
    def conditions(self) -> str:
        """What all runs share, in words."""
        recon, activations = self.quant.recon or ReconConfig(), self.quant.a_qconfig or ActivationQConfig()
        words = f"{self.quant.calibrate:,} calibration images, {recon.batch_size} in an iteration"
        same = activations.observer == ActivationQConfig().observer
        return words if same else f"{words}, ranges of activations by {activations.observer}"

    @property
    def all(self) -> dict[str, dict[str, Any]]:
        """Schedules and factors."""
        return {**self.schedules, **self.factors}

    def settings(self, bits: str, schedule: str, iters: int) -> QuantConfig:
        """What a run is quantized with."""
        w_bit, a_bit = BITS[bits]
        recon = replace(self.quant.recon or ReconConfig(), iters=iters, **self.all[schedule])
        return replace(
            self.quant,
            a_qconfig=replace(self.quant.a_qconfig or ActivationQConfig(), bit=a_bit),
            w_qconfig=replace(self.quant.w_qconfig, bit=w_bit),
            recon=recon,
        )


def split(study: Study, data: DataConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Images to calibrate on, and others of the training set to compare on, both `[N, C, H, W]`."""
    images = calibration_images(data, study.quant.calibrate + study.held_out, seed)
    return images[: study.quant.calibrate], images[study.quant.calibrate :]


@torch.no_grad()
def agreement(model: nn.Module, reference: nn.Module, images: Tensor) -> float:
    """Percent of images for which two networks predict the same class: needs no labels."""
    same = sum(int((model(b).argmax(1) == reference(b).argmax(1)).sum()) for b in images.split(256))
    return 100 * same / len(images)


def runs(study: Study, args: argparse.Namespace, planned: list[Key]) -> Iterator[tuple[Key, float, float]]:
    """Agreement with full precision on images held out, and top-1 on test images, of each run."""
    data = replace(study.data, path=args.data)
    reference = build_model(study.network, {}, args.weights).eval().to(args.device)
    loader = validation_loader(data)
    for key in planned:
        bits, schedule, iters, seed = key
        calibration, held_out = split(study, data, seed)
        settings = study.settings(bits, schedule, iters)
        quantized, _ = qdrop.quantize(reference, calibration, settings, seed=seed)
        found = agreement(quantized, reference, held_out.to(args.device)), accuracy(quantized, loader, args.device)
        print(*key, "held out: {:.2f}, test: {:.2f}".format(*found), flush=True)
        yield key, *found


def name_of(key: Key, what: str) -> str:
    """The name of a figure of one run."""
    bits, schedule, iters, seed = key
    return f"{bits}.{schedule}.{iters}.seed{seed}.{what}"


def figures_of(key: Key, agrees: float, top1: float) -> dict[str, float]:
    """The figures of one run by name."""
    return {name_of(key, "agreement"): agrees, name_of(key, "top1"): top1}


def key_of(name: str) -> tuple[Key, str]:
    """The run that a figure of this name is of, and what it is."""
    bits, schedule, iters, seed, what = name.rsplit(".", 4)
    return (bits, schedule, int(iters), int(seed.removeprefix("seed"))), what


def on_record(label: str) -> dict[str, float]:
    """Figures of the runs on record."""
    path = HERE / "results" / f"{label}.json"
    return dict(Record.read(path).figures) if path.exists() else {}


def unfinished(label: str) -> Path:
    """Where the figures of a study are kept until they are on record."""
    return QUICK / f"{label}-unfinished.json"


def kept(label: str) -> dict[str, float]:
    """Figures of runs that are not on record yet: of a study that failed, or of another part of this one."""
    path = unfinished(label)
    figures: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return figures


def of_seeds(figures: dict[str, float], group: Group, what: str) -> list[float]:
    """A figure of every seed on record."""
    named = ((*key_of(name), value) for name, value in figures.items())
    return [value for key, kind, value in named if (key[:3], kind) == (group, what)]


def groups(study: Study, figures: dict[str, float]) -> list[Group]:
    """Bits, schedule and iterations of what is on record of the study's schedules, in the order of the table."""
    order = list(BITS), list(study.all)
    found = {group for group in (key_of(name)[0][:3] for name in figures) if group[1] in study.all}
    return sorted(found, key=lambda g: (order[0].index(g[0]), order[1].index(g[1]), g[2]))


def plot(study: Study, figures: dict[str, float]) -> Figure:
    """Test top-1 against iterations, mean over seeds: a line for each schedule, solid at W2A4, dashed at W2A2."""
    figure, ax = axes(study.title, "iterations per unit", "top-1, percent")
    known = groups(study, figures)
    for bits, style in zip(BITS, ("-", "--"), strict=True):
        for color, schedule in zip(COLORS, study.schedules, strict=False):
            found = [group for group in known if group[:2] == (bits, schedule)]
            points = [(group[2], statistics.mean(of_seeds(figures, group, "top1"))) for group in found]
            if points:
                ax.plot(*zip(*points, strict=True), style, marker="o", color=color, label=f"{bits}, {schedule}")
    iters = sorted({group[2] for group in known})
    ax.set_xscale("log")
    ax.set_xticks(iters, [f"{n:,}" for n in iters], minor=False)
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)
    return figure


def table(figures: dict[str, float], caption: str, shown: list[Group]) -> Table:
    """Agreement and top-1 of groups of runs."""
    rows = tuple(
        (bits, schedule, f"{iters:,}", str(len(top1)), mean_and_spread(agrees), mean_and_spread(top1))
        for bits, schedule, iters in shown
        for top1, agrees in [[of_seeds(figures, (bits, schedule, iters), what) for what in ("top1", "agreement")]]
    )
    return Table(caption, ("bits", "schedule", "iterations", "seeds", "agreement, held out", "top-1, test"), rows)


def outcome(study: Study, figures: dict[str, float], args: argparse.Namespace) -> Outcome:
    """All runs on record as tables and a plot."""
    known = groups(study, figures)
    caption = f"{study.title}: accuracy against iterations, percent; {study.conditions}."
    tables = [table(figures, caption, [g for g in known if g[1] in study.schedules])]
    compared = {(bits, iters) for bits, schedule, iters in known if schedule in study.factors}
    others = [g for g in known if (g[0], g[2]) in compared and (g[1] in study.factors or study.all[g[1]] == FAST)]
    if others:
        tables.append(table(figures, "The fast schedule with one setting changed.", others))
    notes = (
        "Mean and standard deviation over seeds.",
        f"Agreement: share of {study.held_out:,} training images, not calibrated on, for which the prediction is that"
        " of the full-precision network; schedules are chosen by it.",
        "Runs on record are not repeated; `--iters`, `--schedules` and `--seeds` name parts of the study.",
    )
    command = ["python", "-m", f"benchmarks.{study.name}", "--data", args.data, "--weights", args.weights]
    return Outcome(figures, tuple(tables), plot(study, figures), notes, shlex.join(command))


def measurement(study: Study) -> Callable[[argparse.Namespace], Outcome]:
    """What a benchmark of a study does with its arguments."""
    return lambda args: quick(study.small(), args) if args.quick else whole(study, args)


def quick(study: Study, args: argparse.Namespace) -> Outcome:
    """A few iterations of two schedules."""
    planned = [("W2A4", schedule, 20, 1) for schedule in list(study.schedules)[:2]]
    figures: dict[str, float] = {}
    for run in runs(study, args, planned):
        figures |= figures_of(*run)
    return outcome(study, figures, args)


def whole(study: Study, args: argparse.Namespace) -> Outcome:
    """What is not on record of every schedule, number of iterations and seed; what is finished is not lost."""
    label = label_of(study.name, args.device)
    every = product(args.iters, args.seeds, args.bits, args.schedules)
    keys = ((bits, schedule, iters, seed) for iters, seed, bits, schedule in every)
    known = kept(label) | on_record(label)
    planned = [key for key in keys if name_of(key, "top1") not in known]
    unfinished(label).parent.mkdir(parents=True, exist_ok=True)
    with suppress(KeyboardInterrupt):
        for run in runs(study, args, planned):
            write_file(unfinished(label), json.dumps(kept(label) | figures_of(*run)))
    return outcome(study, kept(label) | on_record(label), args)


def main(doc: str | None, study: Study, argv: Sequence[str] | None = None) -> int:
    """Run a study from the command line: see :func:`benchmarks.common.main`."""
    status = common.main(doc, study.name, measurement(study), parser(str(doc), study), argv)
    for device in ("cpu", "cuda"):
        label = label_of(study.name, torch.device(device))
        if kept(label).keys() <= on_record(label).keys():  # not before, and not after a quick run
            unfinished(label).unlink(missing_ok=True)
    return status


def parser(doc: str, study: Study) -> argparse.ArgumentParser:
    """The common arguments, where the data is, and the parts of the study."""
    made = arguments(doc, study.name)
    made.add_argument("--data", required=True, metavar="PATH", help="as the config's data.path")
    made.add_argument("--weights", required=True, metavar="FILE", help=f"{study.network} trained on it")
    made.add_argument("--iters", type=int, nargs="+", default=list(study.iters), metavar="N")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N")
    made.add_argument("--bits", nargs="+", choices=BITS, default=list(BITS))
    made.add_argument(
        "--schedules", nargs="+", choices=study.all, default=list(study.schedules), help="default: the whole schedules"
    )
    return made
