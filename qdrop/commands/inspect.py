"""What is in a quantized network's file: layers, bits, shapes, sizes, compression, and what was measured.

qdrop inspect res18-w2a4                              # its quantized.safetensors
qdrop inspect res18-w2a4/quantized-native.onnx
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qdrop.checkpoint import Checkpoint, read
from qdrop.checkpoint.network_file import FileKind, find_network
from qdrop.commands.command import exit_status
from qdrop.export.onnx_file import OnnxSummary, OnnxTensor, summary
from qdrop.quantization.packing import packed_size
from qdrop.quantization.spec import Kind, QuantizerSpec

FLOAT_BYTES = 4


def checkpoint_view(checkpoint: Checkpoint, size: int) -> tuple[Table, Table]:
    """A packed checkpoint as tables: a row for each quantizer, then totals.

    Args:
        checkpoint: What the file holds.
        size: Bytes of the file.
    """
    rows = Table("quantizer", "kind", "bits", "grid", "shape", "size", title_justify="left")
    for spec in checkpoint.plan.quantizers:
        grid = "per tensor" if spec.ch_axis == -1 else "per channel"
        stored = readable(_packed(spec)) if spec.kind is Kind.WEIGHT else ""
        _add_row(rows, spec.name, spec.kind, spec.bit, grid, _shape(spec.shape), stored)
    weights = [spec for spec in checkpoint.plan.quantizers if spec.kind is Kind.WEIGHT]
    count = sum(math.prod(spec.shape) for spec in weights)
    packed = sum(map(_packed, weights))
    others = sum(tensor.nbytes for tensor in checkpoint.tensors.values()) - packed
    floats = FLOAT_BYTES * (count + sum(tensor.numel() for tensor in checkpoint.unquantized().values()))
    totals = {
        "quantized weights": f"{count:,} in {packed:,} bytes, {8 * packed / max(1, count):.2f} bits each",
        "scales, zero points, what is not quantized": f"{others:,} bytes",
        "file": f"{size:,} bytes; in float32 {floats:,}: {floats / size:.1f} times as large",
        "units": str(len(checkpoint.plan.units)),
        **_measured(checkpoint.metrics),
    }
    return rows, _pairs(totals)


def onnx_view(found: OnnxSummary, size: int) -> tuple[Table, Table, Table]:
    """An ONNX file as tables: a row for each weight, then its other constants by type, then totals.

    Args:
        found: What the file holds.
        size: Bytes of the file.
    """
    rows = Table("weight", "type", "bits", "shape", "size", "of float32", title_justify="left")
    for weight in found.weights:
        smaller = f"1/{8 * FLOAT_BYTES / weight.bit:g}"
        _add_row(rows, weight.name, weight.dtype, weight.bit, _shape(weight.shape), readable(weight.nbytes), smaller)
    types = Table("other constants", "tensors", "elements", "size")
    for dtype in dict.fromkeys(t.dtype for t in found.others):
        alike = [t for t in found.others if t.dtype == dtype]
        _add_row(types, dtype, len(alike), f"{_elements(alike):,}", readable(sum(t.nbytes for t in alike)))
    count, packed = _elements(found.weights), sum(weight.nbytes for weight in found.weights)
    floats = FLOAT_BYTES * count
    larger = f"{floats / max(1, packed):.1f} times as large"
    totals = {
        "weights": f"{count:,} in {packed:,} bytes; in float32 {floats:,}: {larger}",
        "file": f"{size:,} bytes",
        "opset": ", ".join(f"{domain} {version}" for domain, version in found.opsets.items()),
        "operators": ", ".join(f"{count} {name}" for name, count in found.operators.items()),
        **{f"{key}, before export": value for key, value in _measured(found.metrics).items()},
    }
    return rows, types, _pairs(totals)


def readable(size: int) -> str:
    """Bytes in the unit that suits them, with three digits: `96 B`, `4.61 kB`, `23.6 MB`."""
    if size < 1000:
        return f"{size} B"
    number, unit = size / 1000, "kB"
    for larger in ("MB", "GB"):
        if number >= 1000:
            number, unit = number / 1000, larger
    return f"{number:.{max(0, 3 - len(str(int(number))))}f} {unit}"


def _packed(spec: QuantizerSpec) -> int:
    return packed_size(math.prod(spec.shape), spec.bit)


def _elements(tensors: Sequence[OnnxTensor]) -> int:
    return sum(tensor.elements for tensor in tensors)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _measured(metrics: Mapping[str, Any]) -> dict[str, str]:
    return {key: f"{value:.2f}" if isinstance(value, float) else str(value) for key, value in metrics.items()}


def _plain(value: object) -> Text:
    """A value from a file as it is: not as markup, and what would steer the terminal as its escape."""
    return Text("".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)))


def _add_row(table: Table, *values: object) -> None:
    table.add_row(*map(_plain, values))


def _pairs(values: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        heading = _plain(name)
        heading.stylize("bold")
        table.add_row(heading, _plain(value))
    return table


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.commands.inspect") -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a run folder, a packed checkpoint, or an ONNX file")
    named: Path = parser.parse_args(argv).file

    def work() -> None:
        file = find_network(named, FileKind.CHECKPOINT, FileKind.ONNX)
        size = file.path.stat().st_size
        tables: tuple[Table, ...]
        if file.kind is FileKind.ONNX:
            tables = onnx_view(summary(file.path), size)
        else:
            tables = checkpoint_view(read(file.path), size)
        console = Console(width=1000)  # a table takes what its cells need: names are kept whole, also in a file
        for table in tables:
            console.print(table)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
