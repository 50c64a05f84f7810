"""An ONNX file as a module of PyTorch, run by ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdrop.errors import first_line
from qdrop.export.onnx_file import OnnxFileError
from qdrop.extras import extra


class OnnxNetwork(nn.Module):
    """An ONNX file as a module, run by ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: CPU threads; None: ONNX Runtime decides.

    Raises:
        OnnxFileError: If ONNX Runtime cannot run the file.
        MissingPackageError: If it is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__()
        with extra("onnx", "ONNX files"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each status, without a common one of its own
            raise OnnxFileError(f"{path}: ONNX Runtime cannot run it: {first_line(error)}") from error
        inputs, names = self._session.get_inputs(), [output.name for output in self._session.get_outputs()]
        if len(inputs) != 1:
            raise OnnxFileError(f"{path}: {len(inputs)} inputs; expected one")
        self._path, self._input = path, inputs[0].name
        ours = self._session.get_modelmeta().producer_name == "qdrop"
        dictionary = ours and not all(name.partition(".")[0] == "output" for name in names)  # as export_onnx names them
        self._keys = names if dictionary else None
        size = next(iter(inputs[0].shape), None)
        self._fixed = size if isinstance(size, int) and size > 0 else None

    def forward(self, images: Tensor) -> Any:
        """Images `[N, C, H, W]` to what the network gives: one tensor, or a list or a dict of several; all on the CPU.

        A file may fix the size of its batch: the images are then taken in such batches, the last one filled up.

        Raises:
            OnnxFileError: If ONNX Runtime cannot run it on such images.
        """
        if self._fixed is None:
            return self._run(images)
        size = self._fixed
        missing = -len(images) % size
        filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
        found = [self._run(batch) for batch in filled.split(size)]
        return pytree.tree_map(lambda *parts: torch.cat(parts)[: len(images)], *found)

    def _run(self, images: Tensor) -> Any:
        try:
            values = self._session.run(None, {self._input: images.numpy().astype(np.float32)})
        except Exception as error:  # as above
            shape = "x".join(map(str, images.shape))
            raise OnnxFileError(f"{self._path}: ONNX Runtime cannot run it on {shape}: {first_line(error)}") from error
        outputs = [torch.from_numpy(value) for value in values]
        if self._keys is not None:
            return dict(zip(self._keys, outputs, strict=True))
        return outputs if len(outputs) > 1 else outputs[0]
