"""The table of experiments, made from what runs left behind.

python -m qdrop.solver.report exp        # writes exp/README.md from exp/**/results/*/result.json
"""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qdrop.config import HOW, ActivationQConfig, Config, ReconConfig, config_to_dict, flat, load_config
from qdrop.files import write_file
from qdrop.solver.result import Result
from qdrop.solver.run_folder import PLACES

BITS = ("w4a4", "w3a3", "w2a4", "w2a2")

APART = {
    "quant.recon.drop_prob",  # a column
    "process.seed",
    *(".".join(place) for place in PLACES),
    "data.name",  # the result has it
    *HOW,
}
"""Settings in which results of one mean may differ."""

HEADER = """\
# Experiments

Made by `python -m qdrop.solver.report exp` from the `results/*/result.json` beside each config; do not edit.
Beside each result lie its resolved settings, its environment with the exact arguments, and a log line per unit.
All figures are top-1 in percent.

Every row is one command, run from the repository's folder; a figure without the drop adds `quant.recon.drop_prob=1.0`
to it, and a mean over seeds is of runs with `process.seed=1`, `process.seed=2` and so on. `data.path` is a folder with
`train/<class>/*` and `val/<class>/*`; the weights come from the published release unless `model.path` names a file. Any
setting can be replaced on the command line (`quant.w_qconfig.bit=3`); `python -m qdrop.solver.main_imagenet --help`
lists them all.

| method | settings |
| --- | --- |
| QDrop | as they are |
| BRECQ: block, no drop (the paper's Case 3) | `quant.recon.drop_prob=1.0` |
| Case 1: activations in full precision while weights are learned | `quant.recon.drop_prob=0.0` |
| Case 2: only the unit's input quantized | `quant.recon.drop_prob=0.0 quant.recon.input_prob=1.0` |
| AdaRound: layer by layer, no activation quantization | `quant.recon.granularity=layer quant.recon.drop_prob=0.0` |
| round-to-nearest | `quant.recon=null` |

`drop_prob` is the probability of KEEPING a quantized activation, as in the published configs. The methods are settings
of this one solver, in which what is not quantized comes from the full-precision network; they are not the published
code of BRECQ or AdaRound.

Images: *CIFAR-10, JPEG copies* are the data set's, saved again as JPEG, which costs ResNet-20 about 10 points in full
precision. *ImageNet validation images, squashed* are resized to 227x227 without keeping their proportions.
"""


@dataclass(frozen=True)
class Recorded:
    """A result and the settings it was found with."""

    result: Result
    config: Config
    changes: tuple[str, ...]
    """What its command replaced of the config beside it: `quant.recon.iters=2000`."""

    @property
    def recon(self) -> ReconConfig | None:
        """Settings of reconstruction; None: round-to-nearest."""
        return self.config.quant.recon

    @property
    def key(self) -> tuple[str, int, int, str]:
        """What it has in common with the same experiment without the drop, or with another seed."""
        settings = [(key, value) for key, value in flat(config_to_dict(self.config)) if key not in APART]
        r = self.result
        return r.data, r.calibration_images, r.validation_images, json.dumps(settings)  # overrides have an order

    @property
    def method(self) -> str:
        """`QDrop`, `no drop`, or `other`: another ablation, or no reconstruction."""
        if self.recon is None or self.recon.granularity != "block" or self.recon.input_prob is not None:
            return "other"
        return {0.5: "QDrop", 1.0: "no drop"}.get(self.recon.drop_prob, "other")

    @property
    def setting(self) -> str:
        """On what it was measured and with which schedule, in words; its command tells the rest."""
        images = f"{self.result.calibration_images:,} calibration images"
        if self.recon is None:
            return f"{self.result.data}; round-to-nearest, {images}{self._exceptions()}"
        return (
            f"{self.result.data}; {self.recon.iters:,} iterations of {self.recon.batch_size} images,"
            f" rates {self.recon.round_lr:g} (rounding) and {self.recon.scale_lr:g} (scales),"
            f" {images}{_variants(self.recon)}{self._exceptions()}"
        )

    def _exceptions(self) -> str:
        """What has bits of its own."""
        words = [
            f"{pattern} {' '.join(f'{name[0].upper()}{bit}' for name, bit in asdict(bits).items() if bit)}"
            for pattern, bits in self.config.quant.overrides.items()
        ]
        quant = self.config.quant
        if quant.a_qconfig is not None and quant.a_qconfig.observer != ActivationQConfig().observer:
            words.append(f"ranges of activations by {quant.a_qconfig.observer}")
        if quant.branch_bit:
            words.append(f"what goes straight into an add A{quant.branch_bit}")
        return f"; but {', '.join(words)}" if words else ""


def _variants(recon: ReconConfig) -> str:
    """How the work was done, where that is not the default."""
    default, words = ReconConfig(), ""
    if recon.granularity != default.granularity:
        words += f", {recon.granularity} by {recon.granularity}"
    if recon.precision != default.precision:
        words += f", computed in {recon.precision}"
    if recon.cache.dtype != default.cache.dtype:
        words += f", cached in {recon.cache.dtype}"
    return words


def load_results(folder: Path) -> list[Recorded]:
    """The results recorded beside the config in `folder`, by name; empty if there is none."""
    files = sorted(folder.glob("results/*/result.json"))
    if not files:
        return []
    default = _shown(load_config(folder / "config.yaml"))
    found = []
    for file in files:
        result = Result.read(file)
        config = load_config(file.with_name("config.resolved.yaml"))
        found.append(Recorded(result, config, tuple(_changes("", default, _shown(config)))))
    return found


def _shown(config: Config) -> dict[str, Any]:
    """The settings that decide a figure; which images and whose machine is said in words."""
    data = config_to_dict(config)
    return {
        "quant": data["quant"],
        "data": {key: value for key, value in data["data"].items() if f"data.{key}" not in APART},
        "model": {key: value for key, value in data["model"].items() if f"model.{key}" not in APART},
    }


def _changes(key: str, default: Any, value: Any) -> Iterator[str]:
    """Overrides that turn one setting, or section of them, into another."""
    if isinstance(value, dict) and isinstance(default, dict) and value.keys() == default.keys():
        for name in value:
            inner = f".{name}" if name.isidentifier() else f"[{name}]"  # a pattern of names has dots of its own
            yield from _changes(f"{key}{inner}".lstrip("."), default[name], value[name])
    elif value != default:
        yield shlex.quote(f"{key}={json.dumps(value)}")


def report(exp: Path) -> str:
    """The text of `exp/README.md`.

    Args:
        exp: The folder of the experiments, with `published.json`.

    Raises:
        FileNotFoundError: If it has no `published.json`.
    """
    published = json.loads((exp / "published.json").read_text(encoding="utf-8"))
    parts = [HEADER, "## ImageNet", *_imagenet(exp, published["imagenet"])]
    parts += ["", "## CIFAR-10", *_cifar(exp, published["cifar10"])]
    return "\n".join(parts) + "\n"


def _imagenet(exp: Path, published: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "Published: 20,000 iterations per unit, 1024 calibration images, 50,000 validation images (Wei et al., ICLR"
    yield "2022). Ours: '-' where nothing was measured; otherwise on fewer images and iterations, as the row says, and"
    yield "so not comparable with the published column but with the full-precision and round-to-nearest ones beside it."
    yield ""
    yield "| bits | command | published | ours | full precision | round-to-nearest | measured on |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for bits in BITS:
        for network, figure in zip(published["networks"], published[bits], strict=True):
            results = load_results(exp / bits / network)
            command = f"bash exp/{bits}/{network}/run.sh data.path=..."
            if not results:
                yield f"| {bits.upper()} | `{command}` | {figure:.2f} | - | - | - | - |"
            for found in results:
                r = found.result
                ours = f"{r.top1:.2f} | {r.top1_full:.2f} | {r.top1_nearest:.2f} | {found.setting}"
                weights = [] if found.config.model.path == "auto" else ["model.path=..."]
                shown = " ".join([command, *weights, *found.changes, f"process.seed={r.seed}"])
                yield f"| {bits.upper()} | `{shown}` | {figure:.2f} | {ours} |"


def _cifar(exp: Path, published: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "Mean over seeds, with the standard deviation where there are several. Published method:"
    yield f"{published['source']}."
    yield ""
    yield (
        "| bits | command | full precision | round-to-nearest | no drop | QDrop | seeds | published method |"
        " measured on |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for folder in sorted((exp / "cifar10").glob("resnet*/")):
        for bits in BITS:
            reference = published.get(folder.name, {}).get(bits)
            shown = f"{reference:.1f}" if reference is not None else "-"
            command = f"bash exp/cifar10/{folder.name}/{bits}/run.sh data.path=... model.path=..."
            groups = _alike(load_results(folder / bits))
            if not groups:
                yield f"| {bits.upper()} | `{command}` | - | - | - | - | - | {shown} | - |"
            for results in groups:
                changes = next((found.changes for found in results if found.method == "QDrop"), results[0].changes)
                cells = [
                    bits.upper(),
                    f"`{' '.join([command, *changes])}`",
                    mean_and_spread([found.result.top1_full for found in results]),
                    mean_and_spread([found.result.top1_nearest for found in results]),
                    mean_and_spread([found.result.top1 for found in results if found.method == "no drop"]),
                    mean_and_spread([found.result.top1 for found in results if found.method == "QDrop"]),
                    str(sum(found.method == "QDrop" for found in results)),
                    shown,
                    results[0].setting,
                ]
                yield f"| {' | '.join(cells)} |"


def _alike(results: list[Recorded]) -> list[list[Recorded]]:
    """Results of the same experiment together, most iterations first; within it by seed."""
    groups: dict[tuple[str, int, int, str], list[Recorded]] = {}
    for found in sorted(results, key=lambda found: (-found.result.iters, found.result.seed)):
        groups.setdefault(found.key, []).append(found)
    return list(groups.values())


def mean_and_spread(values: list[float]) -> str:
    """Mean, and standard deviation where there are several; '-' where there is none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.solver.report") -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exp", type=Path, help="folder of the experiments, with its published.json")
    exp = parser.parse_args(argv).exp
    try:
        text = report(exp)
    except (OSError, TypeError, KeyError, ValueError) as error:
        names = ", ".join(field.name for field in fields(Result))
        print(f"error: {error}; a result.json holds {names}", file=sys.stderr)
        return 1
    try:
        write_file(exp / "README.md", text)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
