"""Whether the tensors of a network that comes from elsewhere can be computed with."""

import torch
from torch import Tensor

MASKED = 0.05
"""Share of an additive mask that is -inf, at least: half of a causal one, where a damaged weight has one or two."""


def flaw(value: Tensor) -> str | None:
    """What keeps a tensor of a network from being computed with, as `holds nan`; None if nothing does.

    Of values that are not finite, an additive mask holds -inf: it has two dimensions or more, and many are.
    """
    if told := layout_flaw(value):
        return told
    if value.is_complex():
        return f"is {value.dtype}"
    if not value.is_floating_point():
        return None
    values = value.detach().float()  # as the network computes: 1e300 is infinite
    wrong = values[~values.isfinite()]
    if not len(wrong) or _is_mask(values):
        return None
    return f"holds {wrong[0].item():g}"


def _is_mask(values: Tensor) -> bool:
    masked = values == -torch.inf
    return values.ndim > 1 and bool((values.isfinite() | masked).all() and masked.float().mean() >= MASKED)


def layout_flaw(value: Tensor) -> str | None:
    """What keeps a tensor from being read as plain numbers, as `is sparse or nested`; None if nothing does."""
    if value.is_nested or value.layout is not torch.strided:
        return "is sparse or nested"
    if value.is_quantized:
        return f"is {value.dtype}, of torch's own quantization"
    if value.is_meta:
        return "is on the meta device and has no values"
    return None
