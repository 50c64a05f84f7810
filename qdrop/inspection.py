"""What is in a quantized network's file: layers, bits, shapes, sizes, compression, and what was measured.

qdrop inspect runs/.../quantized.safetensors
qdrop inspect runs/.../quantized-native.onnx
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qdrop.checkpoint import Checkpoint, read
from qdrop.onnx_file import OnnxSummary, summary
from qdrop.quantization.spec import Kind, QuantizerSpec
from qdrop.solver.command import exit_status

FLOAT_BYTES = 4


def checkpoint_view(checkpoint: Checkpoint, size: int) -> tuple[Table, Table]:
    """A packed checkpoint as tables: a row for each quantizer, then totals.

    Args:
        checkpoint: What the file holds.
        size: Bytes of the file.
    """
    rows = Table("quantizer", "kind", "bits", "grid", "shape", "kB", title_justify="left")
    for spec in checkpoint.plan.quantizers:
        kilobytes = f"{_packed(spec) / 1e3:.1f}" if spec.kind is Kind.WEIGHT else ""
        grid = "per tensor" if spec.ch_axis == -1 else "per channel"
        shape = "x".join(map(str, spec.shape))
        rows.add_row(spec.name, str(spec.kind), str(spec.bit), grid, shape, kilobytes)
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


def onnx_view(found: OnnxSummary, size: int) -> tuple[Table, Table]:
    """An ONNX file as tables: its weights and other tensors by type, its operators.

    Args:
        found: What the file holds.
        size: Bytes of the file.
    """
    types = Table("type", "tensors", "elements", "kB")
    for dtype in dict.fromkeys(t.dtype for t in found.tensors):
        alike = [t for t in found.tensors if t.dtype == dtype]
        elements = sum(math.prod(t.shape) for t in alike)
        types.add_row(dtype, str(len(alike)), f"{elements:,}", f"{sum(t.nbytes for t in alike) / 1e3:.1f}")
    operators = ", ".join(f"{count} {name}" for name, count in found.operators.items())
    return types, _pairs({"opset": str(found.opset), "operators": operators, "file": f"{size:,} bytes"})


def _packed(spec: QuantizerSpec) -> int:
    return math.ceil(math.prod(spec.shape) * spec.bit / 8)


def _measured(metrics: Any) -> dict[str, str]:
    return {key: f"{value:.2f}" if isinstance(value, float) else str(value) for key, value in metrics.items()}


def _pairs(values: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        table.add_row(Text(name, style="bold"), value)
    return table


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.inspection") -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a packed checkpoint, or an ONNX file")
    path: Path = parser.parse_args(argv).file

    def work() -> None:
        size = path.stat().st_size
        tables = onnx_view(summary(path), size) if path.suffix == ".onnx" else checkpoint_view(read(path), size)
        console = Console(width=1000)  # a table takes what its cells need: names are kept whole, also in a file
        for table in tables:
            console.print(table)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
