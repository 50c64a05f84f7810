"""How tensors lie in memory."""

import pytest
import torch

from qdrop.quantization.layout import laid_out_as

LAST = torch.channels_last


@pytest.mark.parametrize(("ours", "theirs"), [(torch.contiguous_format, LAST), (LAST, torch.contiguous_format)])
def test_copied_where_it_lies_otherwise(ours, theirs):
    tensor = torch.randn(4, 3, 2, 2).contiguous(memory_format=ours)
    like = torch.empty(4, 3, 2, 2).contiguous(memory_format=theirs)
    laid = laid_out_as(tensor, like)
    assert laid.stride() == like.stride() and torch.equal(laid, tensor)


def test_not_copied_where_only_axes_of_one_element_differ():
    tensor, like = torch.randn(4, 3, 1, 1), torch.empty_strided((4, 3, 1, 1), (3, 1, 3, 3))
    assert laid_out_as(tensor, like) is tensor
