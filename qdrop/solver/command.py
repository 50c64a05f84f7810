"""What the commands share: messages on the terminal, and users' mistakes in one line instead of a traceback."""

import logging
from collections.abc import Callable

import torch

from qdrop.config_io import ConfigError
from qdrop.container import CheckpointError
from qdrop.models import ModelError, WeightsError
from qdrop.onnx_file import OnnxFileError
from qdrop.quantization.graph import GraphError
from qdrop.quantization.plan import PlanError
from qdrop.solver.datasets import DataError
from qdrop.solver.resume import ResumeError
from qdrop.solver.storage import CacheError
from qdrop.solver.unit import ReconstructionError

log = logging.getLogger("qdrop")

USER_ERRORS = (
    ConfigError,
    DataError,
    ModelError,
    WeightsError,
    GraphError,
    PlanError,
    ReconstructionError,
    CacheError,
    CheckpointError,
    OnnxFileError,
    ResumeError,
    FloatingPointError,
    OSError,
)
"""What goes wrong through settings, files or data."""


def exit_status(work: Callable[[], None]) -> int:
    """Do the work of a command: 0, or 1 after a message where it fails through settings, files or data."""
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        work()
    except USER_ERRORS as error:
        log.error("error: %s", error)
        return 1
    except torch.OutOfMemoryError as error:
        log.error("error: memory ran out; lower data.batch_size or quant.recon.batch_size: %s", error)
        return 1
    return 0
