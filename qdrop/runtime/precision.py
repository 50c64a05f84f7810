"""The arithmetic of convolutions and matrix products on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qdrop.quantization.state import holding


@contextmanager
def layer_arithmetic(tf32: bool = False) -> Iterator[None]:
    """Inside: a GPU computes float32 layers in TF32 (10 bits of mantissa) or not; torch's own default is a mixture.

    Args:
        tf32: Whether it does.
    """
    cudnn: Any = torch.backends.cudnn  # mypy knows only some of its parts
    products = torch.backends.cuda.matmul
    if _older_interface():
        arithmetic = holding((cudnn, products), "allow_tf32", tf32)
    else:
        arithmetic = holding((cudnn.conv, cudnn.rnn, products), "fp32_precision", "tf32" if tf32 else "ieee")
    with holding((cudnn,), "benchmark", True), arithmetic:
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
