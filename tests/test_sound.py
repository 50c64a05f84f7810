"""What keeps a tensor from being computed with, in words."""

import pytest
import torch

from qdrop.sound import flaw, layout_flaw

WEIGHT = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (WEIGHT.to_sparse(), "is sparse or nested"),
        (WEIGHT.to_sparse_csr(), "is sparse or nested"),
        (torch.nested.nested_tensor([WEIGHT, WEIGHT]), "is sparse or nested"),
        (torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8), "is torch.qint8, of torch's own quantization"),
        (WEIGHT.to("meta"), "is on the meta device and has no values"),
        (WEIGHT.to(torch.complex64), "is torch.complex64"),
        (torch.tensor([1.0, torch.nan]), "holds nan"),
        (torch.tensor([1.0, torch.inf]), "holds inf"),
        (torch.tensor([0.0, -torch.inf]), "holds -inf"),
        (torch.tensor([1e300], dtype=torch.float64), "holds inf"),
        (torch.tensor([torch.nan]).bfloat16(), "holds nan"),
        (torch.full((2, 2), -torch.inf).fill_diagonal_(torch.nan), "holds "),
    ],
)
def test_flaws(value, told):
    assert flaw(value).startswith(told)


@pytest.mark.parametrize(
    "value",
    [WEIGHT, WEIGHT.half(), WEIGHT.double(), WEIGHT.long(), torch.empty(0), torch.tensor(1.0), WEIGHT > 0],
)
def test_sound_tensors(value):
    assert flaw(value) is None and layout_flaw(value) is None


def test_an_additive_mask_holds_minus_infinity_and_a_weight_does_not():
    causal = torch.full((8, 8), -torch.inf).triu(1)
    assert flaw(causal) is None and flaw(causal + torch.randn(8, 8)) is None
    weight = torch.ones(8, 8)
    weight[0, 0] = -torch.inf
    assert flaw(weight) == "holds -inf"
