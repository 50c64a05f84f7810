"""How tensors lie in memory: convolutions are fastest where the channels of a pixel lie side by side."""

import torch
from torch import Tensor


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Channels-last if `tensor` `[N, C, H, W]` lies in memory as `[N, H, W, C]` and not also as `[N, C, H, W]`."""
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not tensor.is_contiguous() else torch.contiguous_format


def laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, copied if it does not lie in memory as `like`, of the same shape, does."""
    strides = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    if all(size == 1 or ours == theirs for size, ours, theirs in strides):
        return tensor
    return torch.empty_like(like).copy_(tensor)


def in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """The axes of `tensor` in the order in which those of `like` (as many axes) follow each other in memory."""
    return tensor.movedim(1, -1) if memory_format(like) == torch.channels_last else tensor
