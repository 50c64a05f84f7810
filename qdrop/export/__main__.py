"""Write a quantized network in a format that other programs run.

python -m qdrop.export res18-w2a4                       # res18-w2a4/quantized-native.onnx
python -m qdrop.export res18-w2a4 --container int8      # 8-bit types, for integer kernels
python -m qdrop.export quantized.safetensors --format torch  # a program of torch.export
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import qdrop
from qdrop.checkpoint.network_file import FileKind, find_network
from qdrop.commands.command import exit_status
from qdrop.export.errors import ExportError
from qdrop.export.options import Container, default_path
from qdrop.export.program import export_program, save_program
from qdrop.files import check_writable
from qdrop.runs.run_folder import MODEL


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
        help="integers of an ONNX file: native, 2, 4 or 8 bits wide, the smallest file; int8, what fast integer"
        f" kernels compute with (default: {Container.NATIVE})",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: beside the checkpoint)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.export") -> int:
    """Run the command; the exit status is 1 where it fails, with one line that says why."""
    made = parser(prog)
    args = made.parse_args(argv)
    if args.format == "torch" and args.container is not None:
        made.error("--container chooses the integers of an ONNX file; --format torch has none")

    def work() -> None:
        checkpoint = find_network(args.run, FileKind.CHECKPOINT).path
        if args.format == "torch":
            path = write_program(checkpoint, args.out)
        else:
            path = write_onnx(checkpoint, Container(args.container or Container.NATIVE), args.out)
        print(f"{path}: {path.stat().st_size:,} bytes")

    return exit_status(work)


def write_program(checkpoint: Path, out: Path | None = None) -> Path:
    """Export the network of a checkpoint as a program of torch.export.

    Args:
        checkpoint: A packed checkpoint.
        out: The file to write; None: `quantized.pt2` beside it.

    Returns:
        The file written.

    Raises:
        CheckpointError: If the checkpoint is not readable.
        ExportError: If `out` is the checkpoint.
        OSError: If a file cannot be read or written.
    """
    path = _target(checkpoint, out or default_path(checkpoint, None))
    model = qdrop.load(checkpoint)
    save_program(export_program(model, model.meta["example"]), path)
    return path


def write_onnx(checkpoint: Path, container: Container, out: Path | None = None) -> Path:
    """Export the network of a checkpoint as ONNX.

    Args:
        checkpoint: A packed checkpoint.
        container: Integer types of the file.
        out: The file to write; None: `quantized-CONTAINER.onnx` beside the checkpoint.

    Returns:
        The file written.

    Raises:
        CheckpointError: If the checkpoint is not readable.
        ExportError: If the network cannot be written, or `out` is the checkpoint.
        MissingPackageError: If a package is not installed.
        OSError: If a file cannot be read or written.
    """
    path = _target(checkpoint, out or default_path(checkpoint, container))
    from qdrop.export import export_onnx  # now, so that a missing package is known before the network is loaded

    model = qdrop.load(checkpoint)
    return export_onnx(model, model.meta["example"], path, container, model.meta["config"], model.meta["metrics"])


def _target(checkpoint: Path, path: Path) -> Path:
    """The file to write, which can be written: known before the network is loaded and converted."""
    if path.exists() and path.samefile(checkpoint):
        raise ExportError(f"{path}: the file to write is the checkpoint itself; choose another with --out")
    check_writable(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
