"""The page of a folder of experiments: published figures and measured ones, bits across and methods down.

text = page(Path("exp"), read(Path("exp/results.jsonl")))
"""

import json
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from qdrop.errors import first_line
from qdrop.runs.table import Row, TableError

Label = tuple[Any, ...]
BITS = ("W4A4", "W3A3", "W2A4", "W2A2")
"""Of the paper's tables, in this order; others come behind them."""
COLUMNS = ("quant.recon.iters=", "quant.recon.drop_prob=")
"""Settings that a table shows in columns of their own."""
WIDTH = 110
"""Columns of a command."""
OF_LEARNING = ("quant.recon", "quant.network", "quant.calibrate")
"""Settings without which round-to-nearest is the same, or nearly: which images set the ranges changes it little."""

HEADER = """\
# Experiments

Made by `qdrop record exp` from `results.jsonl`, `published.json` and the text in `qdrop/runs/page.py`; do not edit.
`results.jsonl` has a line for each run: its command, all settings with the seed, its figures, its environment (device,
versions, revision, checksum of the weights) and the losses of each unit. Figures are in percent: top-1, or AP.

## Commands

```bash
bash exp/w2a4/res18/run.sh data.path=/data/imagenet     # one experiment; what follows replaces settings of its config
qdrop report exp                                        # all runs on record
qdrop report exp/w2a4/res18/runs                        # runs of yours
qdrop record exp exp/w2a4/res18/runs/resnet18-w2a4-...  # adds a finished run to results.jsonl, and to this page
qdrop record exp                                        # makes this page anew
```

`data.path` is a folder with `train/<class>/*` and `val/<class>/*`, for detectors one in COCO's layout
([docs/detection.md](../docs/detection.md)); the weights come from the published release unless `model.path` names a
file. `qdrop quantize --help` lists all settings. `quant.method=brecq` is the same experiment by
another method, see [docs/methods.md](../docs/methods.md). They are settings of this one solver, not the code that was
published for them. In the tables below, *no drop* is `quant.recon.drop_prob=1.0`, and *round-to-nearest*
`quant.recon=null`.

`drop_prob` is the probability of KEEPING a quantized activation, as in the published configs.

Images: *CIFAR-10, JPEG copies* are the data set's, saved again as JPEG, which costs ResNet-20 about 10 points in full
precision. *ImageNet validation images, squashed* are resized to 227x227 without keeping their proportions.
"""
MEASURED = """
## Measured

Mean ± standard deviation over seeds, and in brackets how many. Figures on fewer images or iterations than the published
ones are to be compared with full precision and round-to-nearest beside them. Settings are those of the `config.yaml`
but for those named; the command of each numbered row stands at the end.
"""


@dataclass(frozen=True)
class Recipe:
    """Runs of the same settings, but for bits and seed: a row of a table."""

    number: int
    """Counted in its table."""
    words: tuple[str, ...]
    """The settings, as :func:`settings` gives them."""
    rows: list[Row]

    @property
    def method(self) -> str:
        """What it is called."""
        return self.rows[0].method


def page(exp: Path, rows: Iterable[Row]) -> str:
    """The text of the page.

    Args:
        exp: The folder of the experiments, which may hold a `published.json`.
        rows: The finished runs.

    Raises:
        TableError: If `published.json` is no JSON.
        OSError: If it cannot be read.
    """
    file = exp / "published.json"
    try:
        published = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise TableError(f"{file}: not valid JSON: {first_line(error)}") from error
    measured = MEASURED.rstrip().splitlines()
    commands = ["", "## Commands of the numbered rows"]
    for (kind, model), section in _by(rows, lambda row: (row.config.data.type, row.result.model)):
        figures = published.get(kind, {}).get(model)
        for (data, images), same in _by(section, lambda row: (row.result.data, row.result.validation_images)):
            recipes = [Recipe(n, words, alike) for n, ((*_, words), alike) in enumerate(_by(same, _order), 1)]
            title = f"### {model}: {data} ({images:,} images)"
            measured += ["", title, "", *_table(recipes, figures)]
            commands += ("", title, "", "```bash", *chain(*map(_command, recipes)), "```")
    return "\n".join([HEADER, *_published(published), *measured, *commands]) + "\n"


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are several; '-' where there is none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def settings(row: Row) -> tuple[str, ...]:
    """What the command of a run sets beside its experiment and its method, but for seed, data and weights."""
    words = shlex.split(row.command)[4:]  # qdrop quantize --config FILE
    apart = ("process.seed=", "quant.method=")
    return tuple(word for word in words if not word.endswith("=...") and not word.startswith(apart))


def _published(published: dict[str, dict[str, Any]]) -> Iterator[str]:
    if not published:
        return
    yield from ("## Published", "", *(f"- {kind}: {figures['source']}" for kind, figures in published.items()))
    for of_kind in published.values():
        models = {name: figures for name, figures in of_kind.items() if name != "source" and "folder" in figures}
        if models:
            yield ""
            yield from _head("network", "folder", "full precision", *BITS)
        for name, figures in models.items():
            known = (figures.get(bits) for bits in ("full", *(bits.lower() for bits in BITS)))
            yield _line(name, f"`{figures['folder']}`", *("-" if cell is None else f"{cell:.2f}" for cell in known))


def _table(recipes: Sequence[Recipe], published: dict[str, float] | None) -> Iterator[str]:
    """One network on the same images."""
    rows = [row for recipe in recipes for row in recipe.rows]
    common = (word for word in recipes[0].words if all(word in recipe.words for recipe in recipes))
    everywhere = [word for word in common if not word.startswith(COLUMNS)]
    bits = _bits(rows)

    def shown(words: Iterable[str], but: tuple[str, ...]) -> str:
        return _short(word for word in words if word not in everywhere and not word.startswith(but))

    full = sorted({f"{row.result.compared[0]:.2f}" for row in rows})
    alike = f" All with {_short(everywhere)}." if everywhere else ""
    yield f"Full precision: {', '.join(full)}.{alike}"
    yield ""
    yield from _head("", "method", "iterations", "settings", *bits)
    if published:
        known = (published.get(name.lower()) for name in bits)
        cells = ("-" if figure is None else str(figure) for figure in known)
        yield _line("", "published", f"{published['iters']:,}", "", *cells)
    for (label,), same in _by(rows, lambda row: (shown(settings(row), OF_LEARNING),)):
        yield _line("", "round-to-nearest", "", label, *(_nearest(same, name) for name in bits))
    for recipe in recipes:
        result = recipe.rows[0].result
        yield _line(
            *(str(recipe.number), recipe.method, f"{result.iters:,}", shown(recipe.words, COLUMNS)),
            *(_over_seeds([row.result.compared[2] for row in recipe.rows if row.result.bits == name]) for name in bits),
        )


def _nearest(rows: Iterable[Row], bits: str) -> str:
    """Round-to-nearest, over seeds: runs that only learn otherwise tell the same figure again."""
    by_seed = {row.result.seed: row.result.compared[1] for row in rows if row.result.bits == bits}
    return _over_seeds(list(by_seed.values()))


def _over_seeds(values: Sequence[float]) -> str:
    return f"{mean_and_spread(values)} ({len(values)})" if values else "-"


def _command(recipe: Recipe) -> Iterator[str]:
    """At which bits and with which seeds there are runs, and the command of the first one."""
    seeds = {
        name: sorted({row.result.seed for row in recipe.rows if row.result.bits == name}) for name in _bits(recipe.rows)
    }
    yield f"# {recipe.number}: " + "; ".join(f"{name} seeds {' '.join(map(str, seeds[name]))}" for name in seeds)
    first = next(row for row in recipe.rows if row.result.bits == next(iter(seeds)))
    yield from _wrapped(shlex.split(first.command))


def _bits(rows: Iterable[Row]) -> list[str]:
    """The bits there are, those of the paper first."""
    found = {row.result.bits for row in rows}
    return [*(name for name in BITS if name in found), *sorted(found.difference(BITS))]


def _order(row: Row) -> tuple[int, bool, str, int, tuple[str, ...]]:
    """Fewest iterations first, the method itself before others, fewest changes first; and what was set."""
    words, method = settings(row), row.method
    return row.result.iters, method != "QDrop", method, len(words), words


def _short(words: Iterable[str]) -> str:
    """Settings as a table has room for: the ends of their names; what is nested without its values."""
    parts = (word.partition("=") for word in words)
    named = (f"{_end(key)}={'...' if value[0] in '{[' else json.loads(value)}" for key, _, value in parts)
    return " ".join(f"`{word}`" for word in named)


def _end(key: str) -> str:
    """The last part of a setting's name; two of the stage over the network, whose settings units have as well."""
    return key.removeprefix("quant.") if key.startswith("quant.network.") else key.rpartition(".")[2]


def _by(rows: Iterable[Row], label: Callable[[Row], Label]) -> list[tuple[Label, list[Row]]]:
    """Rows together that have the same label, in the order of labels; within it by seed."""
    groups: dict[Label, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.result.seed):
        groups.setdefault(label(row), []).append(row)
    return sorted(groups.items(), key=lambda group: group[0])


def _wrapped(words: Iterable[str]) -> Iterator[str]:
    """A command in lines that can be read, to be pasted as they are."""
    line = ""
    for word in map(shlex.quote, words):
        if line and len(line) + len(word) > WIDTH:
            yield f"{line} \\"
            line = " "
        line = f"{line} {word}" if line else word
    yield line


def _head(*names: str) -> Iterator[str]:
    yield _line(*names)
    yield _line(*("---" for _ in names))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
