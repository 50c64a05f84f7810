"""The arithmetic of convolutions and matrix products on a GPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from qdrop.config import ReconConfig


@contextmanager
def layer_arithmetic(recon: ReconConfig | None) -> Iterator[None]:
    """Inside: a GPU computes float32 layers in TF32 (10 bits of mantissa) or not; torch's own default is a mixture.

    Args:
        recon: TF32 where its `precision` says so; None: float32.
    """
    allowed = recon is not None and recon.precision == "tf32"
    cudnn: Any = torch.backends.cudnn  # mypy knows only some of its parts
    products = torch.backends.cuda.matmul
    with ExitStack() as stack:
        stack.enter_context(_set(cudnn, "benchmark", True))
        if _older_interface():
            for part in (cudnn, products):
                stack.enter_context(_set(part, "allow_tf32", allowed))
        else:
            for part in (cudnn.conv, cudnn.rnn, products):
                stack.enter_context(_set(part, "fp32_precision", "tf32" if allowed else "ieee"))
        yield


def _older_interface() -> bool:
    """Whether `allow_tf32` can be used, which torch's compiler reads.

    Where a caller has set `fp32_precision`, which has come to replace it, torch refuses to answer.
    """
    try:
        _ = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        return False
    return True


@contextmanager
def _set(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Inside: an attribute has another value."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)
