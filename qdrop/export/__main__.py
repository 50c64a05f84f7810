"""Write a quantized network in a format that other programs run.

python -m qdrop.export runs/w2a4-res18                       # runs/w2a4-res18/quantized-native.onnx
python -m qdrop.export runs/w2a4-res18 --container int8      # 8-bit types, for integer kernels
python -m qdrop.export quantized.safetensors --format torch  # a program of torch.export
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx

import qdrop
from qdrop.export import Container, export_onnx, export_program
from qdrop.files import write_file
from qdrop.solver.command import exit_status
from qdrop.solver.run_folder import MODEL


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help=f"a run folder, or its {MODEL}")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="default: %(default)s")
    parser.add_argument(
        "--container",
        choices=[str(container) for container in Container],
        default=str(Container.NATIVE),
        help="integers of an ONNX file: native, 2, 4 or 8 bits wide, the smallest file; int8, what fast integer"
        " kernels compute with (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: beside the checkpoint)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.export") -> int:
    """Run the command; the exit status is 1 where it fails, with one line that says why."""
    args = parser(prog).parse_args(argv)

    def work() -> None:
        path = write(args.run, args.format, Container(args.container), args.out)
        print(f"{path}: {path.stat().st_size:,} bytes")

    return exit_status(work)


def write(run: Path, kind: str, container: Container, out: Path | None = None) -> Path:
    """Export the network of a run.

    Args:
        run: A run folder or a packed checkpoint.
        kind: `onnx` or `torch`.
        container: Integer types of an ONNX file.
        out: The file to write; None: `quantized-CONTAINER.onnx` or `quantized.pt2` beside the checkpoint.

    Returns:
        The file written.

    Raises:
        CheckpointError: If there is no readable checkpoint.
        ExportError: If the network cannot be written.
        OSError: If a file cannot be read or written.
    """
    checkpoint = run / MODEL if run.is_dir() else run
    model = qdrop.load(checkpoint)
    if kind == "torch":
        path = out or checkpoint.with_suffix(".pt2")
        program = io.BytesIO()
        torch.export.save(export_program(model, example(model)), program)
        write_file(path, program.getvalue())
        return path
    path = out or checkpoint.with_name(f"{checkpoint.stem}-{container}.onnx")
    export_onnx(model, example(model), path, container, model.meta["config"])
    return path


def example(model: fx.GraphModule) -> Tensor:
    """An input of the shape that a graph was traced with."""
    (images,) = model.graph.find_nodes(op="placeholder")
    return torch.zeros(images.meta["tensor_meta"].shape)


if __name__ == "__main__":
    sys.exit(main())
