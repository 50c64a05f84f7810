"""Top-1 of a quantized network that lies in a file: a packed checkpoint, or ONNX.

qdrop evaluate quantized.safetensors --data /data/imagenet
qdrop evaluate quantized-int8.onnx --data /data/cifar10 data.type=cifar10
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qdrop import checkpoint
from qdrop.config import Config
from qdrop.config_io import config_from_dict
from qdrop.onnx_file import OnnxFileError, settings
from qdrop.solver.command import exit_status
from qdrop.solver.imagenet_util import accuracy, check_network, num_classes, validation_loader
from qdrop.solver.main_imagenet import pick_device
from qdrop.solver.precision import tf32


class OnnxNetwork(nn.Module):
    """An ONNX file as a module, run by ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: CPU threads; None: ONNX Runtime decides.

    Raises:
        OnnxFileError: If ONNX Runtime is not installed or cannot run the file.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise OnnxFileError("ONNX files are run by ONNX Runtime: pip install 'qdrop[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each status, without a common one of its own
            raise OnnxFileError(f"{path}: ONNX Runtime cannot run it: {error}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise OnnxFileError(f"{path}: {len(inputs)} inputs and {len(outputs)} outputs; expected one of each")
        self._input = inputs[0]

    def forward(self, images: Tensor) -> Tensor:
        """Images `[N, C, H, W]` to logits `[N, classes]`, both on the CPU."""
        (logits,) = self._session.run(None, {self._input.name: images.numpy().astype(np.float32)})
        return torch.from_numpy(logits)


def evaluate(path: Path, overrides: Sequence[str] = ()) -> tuple[float, Config]:
    """Top-1 in percent of the network in a file, and the settings it was measured with.

    Args:
        path: A packed checkpoint, or ONNX (`*.onnx`).
        overrides: Settings that replace those recorded in the file: `data.path=...`.

    Raises:
        QdropError: Names what to change.
        OSError: If a file cannot be read.
    """
    if path.suffix == ".onnx":
        config = config_from_dict(settings(path), overrides)
        device = torch.device("cpu")
        model: nn.Module = OnnxNetwork(path, config.process.threads)
    else:
        network = checkpoint.load(path)
        config = config_from_dict(network.meta["config"], overrides)
        device = pick_device(config)
        model = network.to(device)
    loader = validation_loader(config.data)
    for images, _ in loader:
        check_network(model, images[:1].to(device), num_classes(config.data))
        break
    recon = config.quant.recon
    with tf32(recon is not None and recon.precision == "tf32"):  # as the run that measured the recorded top-1
        return accuracy(model, loader, device), config


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("file", type=Path, metavar="FILE", help="quantized.safetensors of a run, or an ONNX file")
    made.add_argument("--data", metavar="PATH", help="folder of the data set: short for data.path=PATH")
    made.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that replace those recorded in the file: data.batch_size=256 data.val_limit=1000;"
        " `qdrop quantize --help` lists them",
    )
    return made


def main(argv: Sequence[str] | None = None, prog: str = "python -m qdrop.solver.evaluate") -> int:
    """Entry point of the command line; returns the exit status."""
    args = parser(prog).parse_intermixed_args(argv)
    overrides = [*([] if args.data is None else [f"data.path={args.data}"]), *args.overrides]

    def work() -> None:
        top1, config = evaluate(args.file, overrides)
        print(f"{args.file}: top-1 {top1:.2f} on {config.data.name or config.data.type}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
