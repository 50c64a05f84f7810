import pytest
import torch

from qdrop.config import ReconConfig
from qdrop.solver.precision import layer_arithmetic


@pytest.mark.parametrize("precision", ["tf32", "float32", None])
def test_holds_inside_and_is_restored_also_after_an_exception(precision):
    recon = None if precision is None else ReconConfig(precision=precision)
    allowed = precision == "tf32"

    def state():
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.enabled, cudnn.deterministic

    before = state()
    with pytest.raises(KeyError), layer_arithmetic(recon):
        assert state() == (allowed, allowed, *before[2:])
        raise KeyError
    assert state() == before
