import pytest
import torch

from qdrop.solver.precision import tf32


@pytest.mark.parametrize("allowed", [True, False])
def test_holds_inside_and_is_restored_also_after_an_exception(allowed):
    def state():
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.enabled, cudnn.deterministic

    before = state()
    with pytest.raises(KeyError), tf32(allowed):
        assert state() == (allowed, allowed, *before[2:])
        raise KeyError
    assert state() == before
