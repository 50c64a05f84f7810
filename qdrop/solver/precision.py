"""The arithmetic of convolutions and matrix products on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qdrop.config import ReconConfig


@contextmanager
def layer_arithmetic(recon: ReconConfig | None) -> Iterator[None]:
    """Inside: a GPU computes float32 layers in TF32 (10 bits of mantissa) or not; torch's own default is a mixture.

    Args:
        recon: TF32 where its `precision` says so; None: float32.
    """
    allowed = recon is not None and recon.precision == "tf32"
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = products.allow_tf32
    with cudnn.flags(enabled=cudnn.enabled, benchmark=True, deterministic=cudnn.deterministic, allow_tf32=allowed):
        products.allow_tf32 = allowed
        try:
            yield
        finally:
            products.allow_tf32 = before
