"""How tensors lie in memory: convolutions are fastest where the channels of a pixel lie side by side."""

import torch
from torch import Tensor


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Channels-last if `tensor` `[N, C, H, W]` lies in memory as `[N, H, W, C]` and not also as `[N, C, H, W]`."""
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not tensor.is_contiguous() else torch.contiguous_format


def in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """The axes of `tensor` in the order in which those of `like` (as many axes) follow each other in memory."""
    return tensor.movedim(1, -1) if memory_format(like) == torch.channels_last else tensor
